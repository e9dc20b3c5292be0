// Reading a message from a terminal: editing, several lines, history, search, pasting.
#pragma once

#include <termios.h>

#include <string>
#include <vector>

#include "main/edit_buffer.h"
#include "main/history.h"
#include "main/key_reader.h"

namespace fathom {

/// The terminal in another mode while this lives: keys come at once and unechoed. `signals`: Ctrl-C still interrupts.
class TerminalMode {
 public:
  enum class Signals { kKeys, kInterrupt };
  explicit TerminalMode(Signals signals);
  ~TerminalMode();
  TerminalMode(const TerminalMode&) = delete;
  TerminalMode& operator=(const TerminalMode&) = delete;

 private:
  termios normal_{};
  bool is_changed_ = false;
};

/// Emacs keys, arrows, Ctrl-R, Alt-Enter or Ctrl-J for a new line, bracketed paste (never submits), Ctrl-G for an
/// editor, Tab for completion. Where the terminal cannot move its cursor (TERM=dumb or unset) it reads plain lines.
class LineEditor {
 public:
  enum class Outcome { kLine, kInterrupted, kEnd, kOpenEditor };

  LineEditor(History& history, std::vector<std::string> completions)
      : history_(history), completions_(std::move(completions)) {}

  /// Reads one entry; `prompt` stands before its first line, `continuation` before the others. `text` is what to begin
  /// with, and what was typed afterwards (also for kOpenEditor). kEnd: Ctrl-D with nothing typed, or the terminal is
  /// gone.
  Outcome read(const std::string& prompt, const std::string& continuation, std::string& text);

 private:
  enum class Step { kGoOn, kDone };

  Outcome read_plain(const std::string& prompt, std::string& text);
  Step handle(const Key& key);
  Step handle_control(char letter);
  bool handle_search(const Key& key);
  void browse(int direction);
  void complete();
  void draw();
  void draw_search();
  void leave_drawing();
  void stop_process();

  History& history_;
  std::vector<std::string> completions_;
  EditBuffer buffer_;
  KeyReader keys_;
  std::string prompt_, continuation_;
  Outcome outcome_ = Outcome::kLine;
  size_t history_idx_ = 0;  // history_.size(): what is being typed, kept in draft_ meanwhile
  std::string draft_;
  bool is_searching_ = false;
  std::string search_;
  size_t search_idx_ = 0;
  size_t drawn_cursor_row_ = 0;  // of the last drawing, counted from its first row
  size_t first_visible_row_ = 0;
};

}  // namespace fathom
