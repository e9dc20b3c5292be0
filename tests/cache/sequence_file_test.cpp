#include "cache/sequence_file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <random>

#include "cache/xxh64.h"
#include "cache_fixture.h"
#include "core/error.h"
#include "support/save_sequence.h"

namespace {

using namespace fathom;
using namespace fathom::cache_test;
namespace fs = std::filesystem;

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};

/// Opens and reads all; the message of the refusal, or "" if there was none. The pool must come out as it went in.
std::string refusal(const fs::path& path, PagePool& pool, const std::string& fingerprint = "model A") {
  const int32_t before = pool.used_pages();
  std::string message;
  try {
    const SequenceFile file(path);
    file.check_fits(fingerprint, pool.layout(), 1000, 100000);
    (void)file.read(pool, static_cast<int64_t>(file.tokens().size()));
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kModel);
    message = e.what();
    CHECK(message.find(path.string()) == 0);
    CHECK(message.find('\n') == std::string::npos);
  }
  CHECK(pool.used_pages() == before);
  return message;
}

TEST_CASE("the checksum is XXH64") {
  CHECK(xxh64("", 0) == 0xef46db3751d8e999u);
  CHECK(xxh64("a", 1) == 0xd24ec4f1a98c6e5bu);
  CHECK(xxh64("abc", 3) == 0x44bc2cf5ad770999u);
  CHECK(xxh64("Nobody inspects the spammish repetition", 39) == 0xfbcea83c8a378bf1u);
}

TEST_CASE("what is saved comes back byte for byte, for every type and around page borders") {
  TempFolder folder;
  const fs::path path = folder.path / "s";
  for (const DType dtype : kTypes) {
    for (const int64_t n : {0, 1, 63, 64, 65, 127, 128, 129}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(n);
      PagePool pool(two_layers(dtype), 12);
      Sequence s(pool);
      const Tokens tokens = counting(n, 500);
      REQUIRE(extend(s, tokens));
      REQUIRE(testing::save_sequence(path, "model A", tokens, s));
      const SequenceFile file(path);
      CHECK(file.tokens() == tokens);
      CHECK(file.fingerprint() == "model A");
      CHECK(file.layout() == pool.layout());
      CHECK(file.file_bytes() == fs::file_size(path));
      CHECK_NOTHROW(file.check_fits("model A", pool.layout(), n, 1000));
      // Twice from one file, and a part of it.
      for (const int64_t wanted : {n, n, n / 2}) {
        const std::optional<Sequence> back = file.read(pool, wanted);
        REQUIRE(back.has_value());
        CHECK(back->length() == wanted);
        CHECK(same_rows(s, *back, wanted));
        check_integrity(pool, {&s, &*back});
      }
    }
  }
  CHECK(folder.n_files() == 1);
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
}

TEST_CASE("a restored sequence goes on as the original would") {
  TempFolder folder;
  PagePool pool(two_layers(), 12);
  Sequence s(pool);
  REQUIRE(extend(s, counting(100)));
  REQUIRE(testing::save_sequence(folder.path / "s", "model A", counting(100), s));
  const SequenceFile file(folder.path / "s");
  std::optional<Sequence> back = file.read(pool, 100);
  REQUIRE(back.has_value());
  REQUIRE(extend(s, counting(200)));
  REQUIRE(extend(*back, counting(200)));
  CHECK(same_rows(s, *back, 200));
  check_integrity(pool, {&s, &*back});
}

TEST_CASE("a pool of another type gets the rows converted through float") {
  TempFolder folder;
  for (const DType from : kTypes) {
    for (const DType to : kTypes) {
      CAPTURE(dtype_name(from));
      CAPTURE(dtype_name(to));
      PagePool source(two_layers(from), 4), target(two_layers(to), 4);
      Sequence s(source);
      REQUIRE(extend(s, counting(70)));
      REQUIRE(testing::save_sequence(folder.path / "s", "model A", counting(70), s));
      const SequenceFile file(folder.path / "s");
      file.check_fits("model A", target.layout(), 70, 70);
      const std::optional<Sequence> back = file.read(target, 70);
      REQUIRE(back.has_value());
      for (int layer = 0; layer < 2; ++layer) {
        const int64_t n = source.layout().row_elements[static_cast<size_t>(layer)];
        std::vector<float> values(static_cast<size_t>(n));
        std::vector<std::byte> expected(target.layout().row_bytes(layer));
        for (int64_t pos = 0; pos < 70; ++pos) {
          dequantize_row(from, row_at(s, layer, pos), values.data(), n);
          if (from == to) {
            std::memcpy(expected.data(), row_at(s, layer, pos), expected.size());
          } else {
            encode(to, values, expected.data());
          }
          REQUIRE(std::memcmp(row_at(*back, layer, pos), expected.data(), expected.size()) == 0);
        }
      }
    }
  }
}

TEST_CASE("rows like those of a real cache shrink") {
  TempFolder folder;
  PagePool pool({.n_layers = 4, .row_elements = {576, 576, 576, 576}, .dtype = DType::kBF16}, 4);
  Sequence s(pool);
  REQUIRE(s.reserve(256));
  std::mt19937 rng(7);
  for (int layer = 0; layer < 4; ++layer) {
    auto* x = pool.layer(layer).as<uint16_t>();
    for (int64_t i = 0; i < 256 * 576; ++i) {
      const double u = (rng() + 1.0) * 0x1p-32, v = rng() * 0x1p-32;
      const auto normal = static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307 * v));
      std::memcpy(&x[i], reinterpret_cast<const char*>(&normal) + 2, 2);
    }
  }
  s.advance(256);
  REQUIRE(testing::save_sequence(folder.path / "s", "", counting(256), s));
  CHECK(fs::file_size(folder.path / "s") < pool.used_bytes() * 80 / 100);
}

TEST_CASE("a file of another model, row size, length or vocabulary is refused, naming both sides") {
  TempFolder folder;
  const fs::path path = folder.path / "s";
  PagePool pool(two_layers(), 4);
  Sequence s(pool);
  REQUIRE(extend(s, counting(70)));
  REQUIRE(testing::save_sequence(path, "model A, rope 40", counting(70), s));
  const std::string foreign = refusal(path, pool, "model B");
  CHECK(foreign.find("'model A, rope 40'") != std::string::npos);
  CHECK(foreign.find("'model B'") != std::string::npos);
  const SequenceFile file(path);
  const CacheLayout other{.n_layers = 2, .row_elements = {96, 64}, .dtype = DType::kBF16};
  CHECK_THROWS_WITH_AS(file.check_fits("model A, rope 40", other, 100, 100),
                       doctest::Contains("1 layers x 96 + 1 x 32 bf16"), Error);
  CHECK_THROWS_WITH_AS(file.check_fits("model A, rope 40", pool.layout(), 69, 100),
                       doctest::Contains("at most 69 tokens, got 70"), Error);
  CHECK_THROWS_WITH_AS(file.check_fits("model A, rope 40", pool.layout(), 70, 69), doctest::Contains("got 69"), Error);
  PagePool mismatched(other, 4);
  CHECK_THROWS_AS((void)file.read(mismatched, 1), BugError);
}

TEST_CASE("a pool without room is no error and nothing changes") {
  TempFolder folder;
  PagePool pool(two_layers(), 4);
  Sequence s(pool);
  REQUIRE(extend(s, counting(150)));
  REQUIRE(testing::save_sequence(folder.path / "s", "", counting(150), s));
  const SequenceFile file(folder.path / "s");
  CHECK_FALSE(file.read(pool, 65).has_value());
  CHECK(file.read(pool, 64).has_value());
  check_integrity(pool, {&s});
}

TEST_CASE("a size limit or a save that is ended leaves nothing behind, an unwritable place is an error") {
  TempFolder folder;
  PagePool pool(two_layers(), 4);
  Sequence s(pool);
  REQUIRE(extend(s, counting(150)));
  CHECK_FALSE(testing::save_sequence(folder.path / "s", "", counting(150), s, 1000));
  {
    SequenceWriter writer(folder.path / "s", "", counting(150), s);
    CHECK(writer.write_page(s) == SequenceWriter::Status::kMore);
    CHECK(writer.write_page(s) == SequenceWriter::Status::kMore);
  }
  CHECK(folder.n_files() == 0);
  CHECK_THROWS_AS(testing::save_sequence(folder.path / "none" / "s", "", counting(150), s), Error);
  CHECK_THROWS_AS(testing::save_sequence(folder.path / "s", "", counting(151), s), BugError);
  CHECK_THROWS_AS(SequenceFile(folder.path / "s"), Error);
  CHECK_THROWS_AS(SequenceFile(folder.path), Error);
}

TEST_CASE("every truncation and every flipped bit is refused, with the live state untouched") {
  TempFolder folder;
  const fs::path good = folder.path / "good", bad = folder.path / "bad";
  PagePool pool({.n_layers = 2, .row_elements = {3, 2}, .dtype = DType::kBF16}, 6);
  const Tokens tokens = counting(70, 9);
  Sequence s(pool);
  REQUIRE(s.reserve(70));
  for (int layer = 0; layer < 2; ++layer) {
    auto* x = pool.layer(layer).as<uint16_t>();
    for (int64_t i = 0; i < 70 * pool.layout().row_elements[static_cast<size_t>(layer)]; ++i) {
      x[i] = static_cast<uint16_t>(16000 + i * 37 % 900);
    }
  }
  s.advance(70);
  REQUIRE(testing::save_sequence(good, "model A", tokens, s));
  const std::vector<char> bytes = bytes_of(good);
  REQUIRE(refusal(good, pool).empty());
  for (size_t n = 0; n < bytes.size(); ++n) {
    write_bytes(bad, std::vector<char>(bytes.begin(), bytes.begin() + static_cast<int64_t>(n)));
    CAPTURE(n);
    REQUIRE_FALSE(refusal(bad, pool).empty());
  }
  std::vector<char> longer = bytes;
  longer.push_back(0);
  write_bytes(bad, longer);
  CHECK_FALSE(refusal(bad, pool).empty());
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (const int bit : {0, 7}) {
      std::vector<char> flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      write_bytes(bad, flipped);
      CAPTURE(i);
      REQUIRE_FALSE(refusal(bad, pool).empty());
    }
  }
  check_integrity(pool, {&s});
  CHECK(refusal(good, pool).empty());
}

TEST_CASE("headers made to hurt are refused by the field, without allocating what they claim") {
  TempFolder folder;
  const fs::path path = folder.path / "s";
  PagePool pool(two_layers(), 4);
  Sequence s(pool);
  REQUIRE(extend(s, counting(10)));
  REQUIRE(testing::save_sequence(path, "model A", counting(10), s));
  const std::vector<char> good = bytes_of(path);
  const size_t header_bytes = 40 + 7 + 2 * 8 + 10 * 4;
  // Changes a field and, unlike a bit flip, makes the checksums right again.
  const auto refused = [&](size_t offset, auto value, const char* expected) {
    std::vector<char> bytes = good;
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    const uint64_t checksum = xxh64(bytes.data(), header_bytes);
    std::memcpy(bytes.data() + header_bytes, &checksum, sizeof(checksum));
    write_bytes(path, bytes);
    const std::string message = refusal(path, pool);
    CAPTURE(message);
    CHECK(message.find(expected) != std::string::npos);
  };
  refused(0, 'f', "not a saved session");
  refused(8, uint32_t{99}, "expected 1 or 2, got 99");
  refused(12, uint32_t{12}, "unknown type");
  refused(12, uint32_t{77777}, "unknown type");
  refused(16, uint64_t{1} << 60, "truncated");
  refused(24, uint32_t{0xfffffff0u}, "at byte 24");
  refused(24, uint32_t{4000}, "at byte 24");
  refused(28, uint32_t{0}, "at byte 24");
  refused(28, uint32_t{0xffffffffu}, "at byte 24");
  refused(28, uint32_t{65000}, "at byte 24");
  refused(32, uint64_t{0xfffffff0u}, "at byte 24");
  refused(32, ~uint64_t{0}, "at byte 24");
  refused(32, uint64_t{1} << 62, "at byte 24");
  refused(47, int64_t{-1}, "impossible rows");
  refused(47, int64_t{1} << 40, "impossible rows");
  refused(47, int64_t{95}, "other cache rows");
  refused(63, int32_t{-7}, "unknown token");
  refused(63, int32_t{100000}, "unknown token");
  refused(40, '\n', "another model");  // and still one line
  refused(header_bytes + 16, uint64_t{0xfffffffffffffff0u}, "at byte 111");
  refused(header_bytes + 16, uint64_t{1}, "at byte 111");
  // A page that is whole by its checksum but is not one.
  std::vector<char> bytes = good;
  const size_t data = header_bytes + 8 + 16;
  bytes[data] = 'x';
  const uint64_t checksum = xxh64(bytes.data() + data, bytes.size() - data);
  std::memcpy(bytes.data() + header_bytes + 8, &checksum, sizeof(checksum));
  write_bytes(path, bytes);
  CHECK(refusal(path, pool).find("bytes of rows") != std::string::npos);
}

}  // namespace
