#include "main/edit_buffer.h"

#include <algorithm>

#include "main/display_width.h"
#include "text/utf8.h"

namespace fathom {
namespace {

/// Everything but spaces and ASCII punctuation makes words.
bool is_word(char c) {
  const unsigned char u = static_cast<unsigned char>(c);
  return u >= 0x80 || (u >= '0' && u <= '9') || (u >= 'a' && u <= 'z') || (u >= 'A' && u <= 'Z') || u == '_';
}

int shown_width(std::string_view character) {
  const unsigned char c = static_cast<unsigned char>(character[0]);
  if (c < 0x20 || c == 0x7f) return 2;
  return std::max(character_width(character), 1);
}

/// Columns between two places of a line.
int column_of(std::string_view text, size_t begin, size_t pos) {
  int column = 0;
  while (begin < pos) {
    const size_t n = character_length(text, begin);
    column += shown_width(text.substr(begin, n));
    begin += n;
  }
  return column;
}

}  // namespace

std::string display_text(std::string_view character) {
  const unsigned char c = static_cast<unsigned char>(character[0]);
  if (c < 0x20 || c == 0x7f) return {'^', static_cast<char>(c ^ 0x40)};
  const Utf8Unit unit = read_utf8(character, 0);
  if (unit.state != Utf8Unit::State::kValid || (unit.code_point >= 0x80 && unit.code_point < 0xa0))
    return std::string(kReplacementCharacter);
  // A mark without a character before it would join the prompt.
  return display_width(unit.code_point) == 0 ? " " + std::string(character) : std::string(character);
}

void EditBuffer::set(std::string text) {
  text_ = std::move(text);
  cursor_ = text_.size();
}

void EditBuffer::insert(std::string_view text) {
  text_.insert(cursor_, text);
  cursor_ += text.size();
}

bool EditBuffer::erase_before() {
  if (cursor_ == 0) return false;
  const size_t n = character_length_before(text_, cursor_);
  text_.erase(cursor_ - n, n);
  cursor_ -= n;
  return true;
}

bool EditBuffer::erase_after() {
  if (cursor_ == text_.size()) return false;
  text_.erase(cursor_, character_length(text_, cursor_));
  return true;
}

void EditBuffer::left() {
  if (cursor_ > 0) cursor_ -= character_length_before(text_, cursor_);
}

void EditBuffer::right() {
  if (cursor_ < text_.size()) cursor_ += character_length(text_, cursor_);
}

void EditBuffer::word_left() {
  while (cursor_ > 0 && !is_word(text_[cursor_ - 1])) --cursor_;
  while (cursor_ > 0 && is_word(text_[cursor_ - 1])) --cursor_;
}

void EditBuffer::word_right() {
  while (cursor_ < text_.size() && !is_word(text_[cursor_])) ++cursor_;
  while (cursor_ < text_.size() && is_word(text_[cursor_])) ++cursor_;
}

size_t EditBuffer::line_start(size_t pos) const {
  const size_t newline = pos == 0 ? std::string::npos : text_.rfind('\n', pos - 1);
  return newline == std::string::npos ? 0 : newline + 1;
}

size_t EditBuffer::line_finish(size_t pos) const { return std::min(text_.find('\n', pos), text_.size()); }

void EditBuffer::line_begin() { cursor_ = line_start(cursor_); }
void EditBuffer::line_end() { cursor_ = line_finish(cursor_); }

size_t EditBuffer::place_in_line(size_t begin, size_t end, int column) const {
  while (begin < end && column > 0) {
    const size_t n = character_length(text_, begin);
    column -= shown_width(std::string_view(text_).substr(begin, n));
    if (column < 0) break;
    begin += n;
  }
  return begin;
}

bool EditBuffer::up() {
  const size_t begin = line_start(cursor_);
  if (begin == 0) return false;
  cursor_ = place_in_line(line_start(begin - 1), begin - 1, column_of(text_, begin, cursor_));
  return true;
}

bool EditBuffer::down() {
  const size_t end = line_finish(cursor_);
  if (end == text_.size()) return false;
  cursor_ = place_in_line(end + 1, line_finish(end + 1), column_of(text_, line_start(cursor_), cursor_));
  return true;
}

void EditBuffer::kill(size_t begin, size_t end) {
  if (begin == end) return;
  killed_ = text_.substr(begin, end - begin);
  text_.erase(begin, end - begin);
  cursor_ = begin;
}

void EditBuffer::kill_word_before() {
  const size_t end = cursor_;
  word_left();
  kill(cursor_, end);
}

void EditBuffer::kill_word_after() {
  const size_t begin = cursor_;
  word_right();
  kill(begin, cursor_);
}

void EditBuffer::kill_to_line_end() {
  const size_t end = line_finish(cursor_);
  kill(cursor_, end == cursor_ && end < text_.size() ? end + 1 : end);
}

void EditBuffer::kill_to_line_begin() { kill(line_start(cursor_), cursor_); }

void EditBuffer::swap_characters() {
  if (cursor_ == text_.size()) left();
  if (cursor_ == 0 || text_.empty()) return;
  const size_t before = character_length_before(text_, cursor_), after = character_length(text_, cursor_);
  const std::string first = text_.substr(cursor_ - before, before);
  text_.erase(cursor_ - before, before);
  text_.insert(cursor_ - before + after, first);
  cursor_ += after;
}

Layout Layout::of(std::string_view text, size_t cursor, int columns, int prompt_width, int continuation_width) {
  Layout layout;
  // A prompt as wide as the window would leave no room to type.
  prompt_width = std::min(prompt_width, columns - 2);
  continuation_width = std::min(continuation_width, columns - 2);
  int column = prompt_width;
  layout.rows.push_back({0, 0, prompt_width, true, true});
  auto place_cursor = [&] {
    layout.cursor_row = layout.rows.size() - 1;
    layout.cursor_column = column;
  };
  auto wrap = [&](size_t pos) {
    layout.rows.back().end = pos;
    layout.rows.push_back({pos, pos, 0, false, false});
    column = 0;
  };
  size_t at = 0;
  while (at < text.size()) {
    const size_t n = character_length(text, at);
    const bool is_newline = text[at] == '\n';
    const int width = is_newline ? 0 : shown_width(text.substr(at, n));
    if (!is_newline && column + width > columns) wrap(at);
    if (cursor >= at && cursor < at + n) place_cursor();
    if (is_newline) {
      layout.rows.back().end = at;
      layout.rows.push_back({at + 1, at + 1, continuation_width, false, true});
      column = continuation_width;
    } else {
      column += width;
    }
    at += n;
  }
  layout.rows.back().end = text.size();
  if (cursor >= text.size()) {
    // Behind a full row the terminal's cursor has no column of its own.
    if (column >= columns) wrap(text.size());
    place_cursor();
  } else if (layout.cursor_column >= columns) {
    // On the newline that ends a full row: shown on its last column.
    layout.cursor_column = columns - 1;
  }
  return layout;
}

}  // namespace fathom
