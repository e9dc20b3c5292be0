#include "main/edit_buffer.h"

#include <doctest/doctest.h>

#include "main/display_width.h"

using namespace fathom;

TEST_CASE("characters are what a reader would count: marks, joined emoji and skin tones belong to the one before") {
  for (const std::string one : {"a", "日", "e\u0301", "👩‍👩‍👧", "👍🏽", "\xff"}) {
    CAPTURE(one);
    CHECK(character_length(one + "b", 0) == one.size());
    CHECK(character_length_before("ab" + one, 2 + one.size()) == one.size());
  }
  CHECK(character_width("a") == 1);
  CHECK(character_width("日") == 2);
  CHECK(character_width("e\u0301") == 1);
  CHECK(character_width("👩‍👩‍👧") == 2);
  CHECK(character_width("\xff") == 1);
}

TEST_CASE("editing works on characters and words") {
  EditBuffer b;
  b.insert("one zwei 日本");
  b.left();
  CHECK(b.erase_before());
  CHECK(b.text() == "one zwei 本");
  b.line_begin();
  CHECK_FALSE(b.erase_before());
  b.word_right();
  CHECK(b.cursor() == 3);
  b.kill_to_line_end();
  CHECK(b.text() == "one");
  b.line_begin();
  b.yank();
  CHECK(b.text() == " zwei 本one");
  b.kill_word_before();
  b.set("ab");
  b.swap_characters();
  CHECK(b.text() == "ba");
  b.set("");
  b.swap_characters();
  b.kill_word_after();
  CHECK_FALSE(b.erase_after());
  CHECK(b.text().empty());
}

TEST_CASE("up and down keep the column as far as the lines reach, and say where they end") {
  EditBuffer b;
  b.set("日本語x\nab\nabcdef");
  CHECK(b.up());
  CHECK(b.cursor() == std::string("日本語x\nab").size());
  CHECK(b.up());
  CHECK(b.cursor() == std::string("日").size());
  CHECK_FALSE(b.up());
  CHECK(b.down());
  CHECK(b.down());
  CHECK_FALSE(b.down());
  b.line_begin();
  b.kill_to_line_begin();
  CHECK(b.text() == "日本語x\nab\nabcdef");
}

TEST_CASE("a layout wraps before what does not fit and places the cursor") {
  SUBCASE("one row") {
    const Layout l = Layout::of("abc", 1, 10, 4, 4);
    REQUIRE(l.rows.size() == 1);
    CHECK(l.cursor_column == 5);
  }
  SUBCASE("a wide character does not straddle the edge") {
    const Layout l = Layout::of("abcde日", 5, 10, 4, 4);
    REQUIRE(l.rows.size() == 2);
    CHECK(l.rows[0].end == 5);
    CHECK(l.cursor_row == 1);
    CHECK(l.cursor_column == 0);
  }
  SUBCASE("behind a full row the cursor is on the next") {
    const Layout l = Layout::of("abcdef", 6, 10, 4, 4);
    CHECK(l.cursor_row == 1);
    CHECK(l.cursor_column == 0);
  }
  SUBCASE("new lines begin behind the continuation prompt") {
    const Layout l = Layout::of("ab\n\ncd", 3, 10, 4, 2);
    REQUIRE(l.rows.size() == 3);
    CHECK(l.cursor_row == 1);
    CHECK(l.cursor_column == 2);
    CHECK(l.rows[2].starts_line);
  }
  SUBCASE("a prompt wider than the window leaves room to type") {
    const Layout l = Layout::of("日日", 6, 4, 40, 40);
    for (const Layout::Row& row : l.rows) CHECK(row.end - row.begin <= 6);
    CHECK(l.cursor_column < 4);
  }
}

TEST_CASE("controls and broken bytes are shown, never obeyed") {
  CHECK(display_text("\x1b") == "^[");
  CHECK(display_text("\t") == "^I");
  CHECK(display_text("\xff") == "\uFFFD");
  CHECK(display_text("\u009b") == "\uFFFD");
  CHECK(display_text("é") == "é");
}
