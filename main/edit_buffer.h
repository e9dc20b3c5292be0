// The text being typed: where the cursor stands and what editing commands do to it. Knows no terminal.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// UTF-8 text, possibly of several lines, with a cursor between two characters.
class EditBuffer {
 public:
  const std::string& text() const { return text_; }
  size_t cursor() const { return cursor_; }  ///< byte offset
  /// Replaces everything; the cursor goes to the end.
  void set(std::string text);

  void insert(std::string_view text);
  bool erase_before();  ///< the character before the cursor; false if there is none
  bool erase_after();

  void left();
  void right();
  void word_left();
  void word_right();
  void line_begin();
  void line_end();
  bool up();    ///< to the line above, keeping the column; false on the first line
  bool down();  ///< false on the last line

  // What these remove can be put back with yank().
  void kill_word_before();
  void kill_word_after();
  void kill_to_line_end();  ///< at a line's end: the newline
  void kill_to_line_begin();
  void yank() { insert(killed_); }
  void swap_characters();

 private:
  size_t line_start(size_t pos) const;
  size_t line_finish(size_t pos) const;
  void kill(size_t begin, size_t end);
  size_t place_in_line(size_t begin, size_t end, int column) const;

  std::string text_, killed_;
  size_t cursor_ = 0;
};

/// A text laid out in columns: wrapped where it is too wide, indented where it has several lines.
struct Layout {
  struct Row {
    size_t begin, end;  ///< bytes of the text, without the newline
    int indent;         ///< columns before it: the prompt's or the continuation prompt's, 0 where a line only wraps
    bool is_first, starts_line;
  };
  std::vector<Row> rows;
  size_t cursor_row = 0;
  int cursor_column = 0;

  /// `columns` >= 4. Tabs and other control characters take the columns that display_text() gives them.
  static Layout of(std::string_view text, size_t cursor, int columns, int prompt_width, int continuation_width);
};

/// What is shown for one character: itself, ^X for controls, U+FFFD for invalid bytes.
std::string display_text(std::string_view character);

}  // namespace fathom
