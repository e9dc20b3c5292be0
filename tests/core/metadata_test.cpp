#include "core/metadata.h"

#include <doctest/doctest.h>
#include <limits>

#include "core/error.h"

namespace fathom {
namespace {

TEST_CASE("absent keys give nothing, present ones their value") {
  Metadata m;
  CHECK(!m.integer("a").has_value());
  CHECK(m.text("a") == nullptr);
  m.set("a", int64_t{-3});
  m.set("a", int64_t{4});
  CHECK(m.integer("a") == 4);
  m.set("name", std::string("x"));
  CHECK(*m.text("name") == "x");
  m.set("on", true);
  CHECK(m.boolean("on") == true);
  CHECK(m.all().size() == 3);
}

TEST_CASE("integers of any width and sign are integers and numbers") {
  Metadata m;
  m.set("u", uint64_t{7});
  m.set("i", int64_t{-7});
  m.set("f", 0.5);
  m.set("huge", std::numeric_limits<uint64_t>::max());
  CHECK(m.integer("u") == 7);
  CHECK(m.number("u") == 7.0);
  CHECK(m.number("i") == -7.0);
  CHECK(m.number("f") == 0.5);
  CHECK_THROWS_AS(m.integer("f"), Error);
  CHECK_THROWS_AS(m.integer("huge"), Error);
  m.set("list", std::vector<int64_t>{1, 2});
  CHECK(m.numbers("list").value() == std::vector<double>{1.0, 2.0});
}

TEST_CASE("a value of the wrong kind is the file's fault and the message names key and kinds") {
  Metadata m;
  m.set("deepseek2.block_count", std::string("many"));
  try {
    m.integer("deepseek2.block_count");
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kModel);
    const std::string message = e.what();
    CHECK(message.find("deepseek2.block_count") != std::string::npos);
    CHECK(message.find("text") != std::string::npos);
  }
  CHECK_THROWS_AS(m.boolean("deepseek2.block_count"), Error);
  CHECK_THROWS_AS(m.texts("deepseek2.block_count"), Error);
  CHECK_THROWS_AS(m.numbers("deepseek2.block_count"), Error);
}

}  // namespace
}  // namespace fathom
