// Where text goes: the answer to standard output, everything else to standard error, colours and motion to terminals
// only.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "core/plain_text.h"

namespace fathom {

enum class LogLevel { kQuiet, kWarn, kInfo, kDebug };
enum class ColorMode { kAuto, kAlways, kNever };

/// The reader of standard output went away. Not an error to report: the program ends with 141.
class OutputClosed : public std::exception {};

/// Writes to standard output at once. Throws OutputClosed when the reader is gone, Error{kRuntime} with the system's
/// reason (disk full), Error{kInterrupted} if SIGINT came while the reader kept it waiting.
void write_answer(std::string_view text);

/// Model text for a terminal: control characters other than newline and tab are shown (^[), never obeyed. `text` is
/// UTF-8.
std::string visible_text(std::string_view text);

/// What standard output is for: as it is into a pipe or file, visible_text and a closing newline on a terminal.
class AnswerOutput {
 public:
  AnswerOutput();
  void write(std::string_view text);
  /// Dimmed where colours are on: text apart from the answer.
  void write_dimmed(std::string_view text, bool color);
  /// Ends the line on a terminal.
  void finish();

 private:
  bool is_terminal_;
  bool at_line_start_ = true;
};

/// Messages to people on standard error.
class Console {
 public:
  Console(LogLevel level, ColorMode color, bool force_progress);

  void warn(std::string_view text) const;   ///< "warning: text"
  void note(std::string_view text) const;   ///< "note: text", from level info
  void debug(std::string_view text) const;  ///< "debug: text"
  /// "text" dimmed, only where standard error is a terminal or the level is debug: statistics, what runs.
  void detail(std::string_view text) const;

  bool color_out() const { return color_out_; }
  bool progress_in_place() const { return err_is_terminal_ && level_ >= LogLevel::kWarn; }
  bool progress_as_lines() const { return force_progress_ && !err_is_terminal_; }
  LogLevel level() const { return level_; }

 private:
  LogLevel level_;
  bool err_is_terminal_;
  bool color_out_, color_err_;
  bool force_progress_;
};

/// How far something long has come: one line rewritten in place on a terminal, a line every tenth with --progress, else
/// nothing. Appears only after a short while, so that quick work shows nothing. The unit "bytes" is shown with speed
/// and time left.
class ProgressLine {
 public:
  ProgressLine(const Console& console, std::string what, std::string unit);
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void update(uint64_t done, uint64_t total);
  /// Removes the line from the terminal.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string text(uint64_t done, uint64_t total, Clock::time_point now) const;

  const Console& console_;
  std::string what_, unit_;
  std::optional<uint64_t> first_done_;  ///< of the first update: what was there before does not count for the speed
  Clock::time_point start_ = Clock::now(), last_ = {};
  uint64_t last_tenth_ = 0;
  bool is_shown_ = false;
};

bool is_terminal(int fd);

}  // namespace fathom
