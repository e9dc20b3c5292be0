#include "main/key_reader.h"

#include <doctest/doctest.h>

#include <vector>

using namespace fathom;

namespace {

std::vector<Key> keys_of(const std::string& bytes, size_t piece, bool no_more_bytes = true) {
  KeyReader reader;
  std::vector<Key> keys;
  Key key;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    reader.feed(bytes.substr(at, piece));
    while (reader.next(key, false)) keys.push_back(key);
  }
  while (reader.next(key, no_more_bytes)) keys.push_back(key);
  return keys;
}

}  // namespace

TEST_CASE("keys are the same however their bytes are cut") {
  const std::string bytes =
      "\x1b[A\x1b[1;5C\x1b[3~\x1bOH\x1b"
      "b\x01\r\n\x7f\x1b\r";
  const std::vector<Key::Kind> wanted = {
      Key::Kind::kUp,      Key::Kind::kWordRight, Key::Kind::kDelete,  Key::Kind::kHome,      Key::Kind::kAlt,
      Key::Kind::kControl, Key::Kind::kEnter,     Key::Kind::kNewline, Key::Kind::kBackspace, Key::Kind::kNewline};
  for (const size_t piece : {1, 2, 3, 100}) {
    const std::vector<Key> keys = keys_of(bytes, piece);
    REQUIRE(keys.size() == wanted.size());
    for (size_t i = 0; i < keys.size(); ++i) CHECK(keys[i].kind == wanted[i]);
    CHECK(keys[4].letter == 'b');
    CHECK(keys[5].letter == 'a');
  }
}

TEST_CASE("text comes in whole characters") {
  for (const size_t piece : {1, 2, 5, 100}) {
    std::string text;
    for (const Key& key : keys_of("日本 x", piece)) {
      CHECK(key.kind == Key::Kind::kText);
      text += key.text;
    }
    CHECK(text == "日本 x");
  }
}

TEST_CASE("a paste is one key, its line ends are newlines, escape sequences in it mean nothing") {
  for (const size_t piece : {1, 4, 100}) {
    const std::vector<Key> keys = keys_of("\x1b[200~a\r\nb\rc\x1b[A\x03\x1b[201~\r", piece);
    REQUIRE(keys.size() == 2);
    CHECK(keys[0].kind == Key::Kind::kPaste);
    CHECK(keys[0].text == "a\nb\nc\x1b[A\x03");
    CHECK(keys[1].kind == Key::Kind::kEnter);
  }
}

TEST_CASE("a lone ESC is a key once nothing follows, and garbage ends") {
  CHECK(keys_of("\x1b", 1, false).empty());
  REQUIRE(keys_of("\x1b", 1).size() == 1);
  CHECK(keys_of("\x1b", 1)[0].kind == Key::Kind::kEscape);
  CHECK(keys_of("\x1b[" + std::string(100, '1'), 200).size() >= 1);
  CHECK(keys_of("\xe6\x97", 1).size() == 1);
}
