#include "text/unicode_classes.h"

#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

using namespace fathom;

TEST_CASE("every code point has exactly the classes of the reference tables") {
  std::ifstream file(std::string(FATHOM_FIXTURES) + "/tokenizers/codepoint_classes.json");
  const auto json = nlohmann::json::parse(file);
  std::vector<uint8_t> expected(0x110000, 0);
  const std::pair<const char*, CodePointClass> classes[] = {{"L", kLetter},      {"M", kMark},   {"N", kNumber},
                                                            {"P", kPunctuation}, {"S", kSymbol}, {"space", kSpace}};
  for (const auto& [key, bit] : classes) {
    std::istringstream ranges(json[key].get<std::string>());
    for (std::string range; ranges >> range;) {
      const size_t dash = range.find('-');
      const auto first = std::stoul(range, nullptr, 16);
      const auto last = dash == range.npos ? first : std::stoul(range.substr(dash + 1), nullptr, 16);
      for (auto c = first; c <= last; ++c) expected[c] |= bit;
    }
  }
  size_t different = 0;
  for (uint32_t c = 0; c < expected.size(); ++c) different += (code_point_classes(c) & ~kCased) != expected[c];
  CHECK(different == 0);
}

TEST_CASE("cased letters are letters, and not all of them") {
  size_t cased = 0;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    const uint8_t classes = code_point_classes(c);
    if (classes & kCased) CHECK((classes & kLetter) != 0);
    cased += (classes & kCased) != 0;
  }
  CHECK(cased == 2729);
  CHECK((code_point_classes(0x4E00) & kCased) == 0);
  CHECK((code_point_classes(0x01BB) & kCased) == 0);
}

TEST_CASE("values beyond Unicode have no class") {
  CHECK(code_point_classes(0x110000) == 0);
  CHECK(code_point_classes(0xFFFFFFFF) == 0);
  CHECK(code_point_classes(0xD800) == 0);
}
