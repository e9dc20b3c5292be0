#include "text/utf8.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "core/printable.h"

using namespace fathom;
using State = Utf8Unit::State;

TEST_CASE("valid sequences at the borders of each length") {
  const std::vector<std::pair<std::string, uint32_t>> cases = {
      {std::string(1, '\0'), 0},     {"\x7F", 0x7F},           {"\xC2\x80", 0x80},
      {"\xDF\xBF", 0x7FF},           {"\xE0\xA0\x80", 0x800},  {"\xED\x9F\xBF", 0xD7FF},
      {"\xEE\x80\x80", 0xE000},      {"\xEF\xBF\xBF", 0xFFFF}, {"\xF0\x90\x80\x80", 0x10000},
      {"\xF4\x8F\xBF\xBF", 0x10FFFF}};
  for (const auto& [bytes, code_point] : cases) {
    const Utf8Unit unit = read_utf8(bytes, 0);
    CAPTURE(code_point);
    CHECK(unit.state == State::kValid);
    CHECK(unit.code_point == code_point);
    CHECK(unit.length == bytes.size());
  }
}

TEST_CASE("wrong sequences end before the byte that makes them wrong") {
  const std::vector<std::pair<std::string, uint32_t>> cases = {
      {"\x80", 1},         {"\xBF", 1},         {"\xC0\x80", 1},         {"\xC1\xBF", 1},    {"\xE0\x9F\x80", 1},
      {"\xED\xA0\x80", 1}, {"\xF0\x8F\x80", 1}, {"\xF4\x90\x80\x80", 1}, {"\xF5\x80", 1},    {"\xFF", 1},
      {"\xC3z", 1},        {"\xE4\xBDz", 2},    {"\xF0\x9F\x98z", 3},    {"\xF0\x9F\xF0", 2}};
  for (const auto& [bytes, length] : cases) {
    CAPTURE(in_quotes(bytes));
    CHECK(read_utf8(bytes, 0).state == State::kInvalid);
    CHECK(read_utf8(bytes, 0).length == length);
  }
}

TEST_CASE("a sequence cut off is unfinished, not wrong") {
  for (const std::string bytes : {"\xC3", "\xE4", "\xE4\xBD", "\xF0", "\xF0\x9F", "\xF0\x9F\x98"}) {
    CHECK(read_utf8("ab" + bytes, 2).state == State::kUnfinished);
    CHECK(read_utf8("ab" + bytes, 2).length == bytes.size());
  }
}

TEST_CASE("each maximal wrong part becomes one replacement character") {
  CHECK(to_valid_utf8("a\xF0\x9F\x98z") == "a\uFFFDz");
  CHECK(to_valid_utf8("\xC0\xAF") == "\uFFFD\uFFFD");
  CHECK(to_valid_utf8("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(to_valid_utf8("你\xE5\xA5") == "你\uFFFD");
  CHECK(to_valid_utf8("") == "");
}

TEST_CASE("a stream holds back what is unfinished and no more") {
  Utf8Stream stream;
  CHECK(stream.push("a\xE4") == "a");
  CHECK(stream.push("\xBD") == "");
  CHECK(stream.push("\xA0z") == "你z");
  CHECK(stream.push("\xF0\x9F") == "");
  CHECK(stream.push("q") == "\uFFFDq");
  CHECK(stream.push("\xE4") == "");
  CHECK(stream.flush() == "\uFFFD");
  CHECK(stream.flush() == "");
  CHECK(stream.push("\xED\xA0") == "");
  CHECK(stream.flush() == "\uFFFD\uFFFD");
}

TEST_CASE("however a stream is cut, its text is that of all bytes") {
  std::mt19937 random(3);
  const std::string alphabet = "a\x80\xA0\xBF\xC3\xE0\xE4\xED\xF0\xF4\x9F\x90\xFF";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes, text;
    for (uint32_t i = random() % 12; i > 0; --i) bytes += alphabet[random() % alphabet.size()];
    Utf8Stream stream;
    for (size_t pos = 0; pos < bytes.size();) {
      const size_t n = 1 + random() % 4;
      text += stream.push(std::string_view(bytes).substr(pos, n));
      pos += n;
    }
    text += stream.flush();
    CAPTURE(in_quotes(bytes));
    CHECK(text == to_valid_utf8(bytes));
  }
}
