#include "main/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "main/signals.h"

namespace fathom {
namespace {

constexpr std::string_view kDim = "\x1b[2m";
constexpr std::string_view kNormal = "\x1b[0m";

/// Standard error may be closed or full; there is nobody to tell.
void write_error_stream(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

bool wants_color(ColorMode mode, bool fd_is_terminal) {
  if (mode == ColorMode::kAlways) return true;
  if (mode == ColorMode::kNever || !fd_is_terminal) return false;
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* term = std::getenv("TERM");
  return term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace

bool is_terminal(int fd) { return isatty(fd) == 1; }

void write_answer(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EPIPE) {
      throw OutputClosed();
    } else if (errno == EINTR) {
      if (interrupted()) throw Error(ErrorCode::kInterrupted, "interrupted");
    } else {
      throw Error(ErrorCode::kRuntime, std::string("standard output: cannot write; ") + std::strerror(errno));
    }
  }
}

std::string visible_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      out += '^';
      out += static_cast<char>(c ^ 0x40);
    } else if (c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) {
      // C1 controls: U+0080 to U+009F, some terminals obey them like ESC.
      char code[16];
      std::snprintf(code, sizeof code, "\\u{%02x}", static_cast<unsigned>(static_cast<unsigned char>(text[i + 1])));
      out += code;
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

AnswerOutput::AnswerOutput() : is_terminal_(fathom::is_terminal(STDOUT_FILENO)) {}

void AnswerOutput::write(std::string_view text) {
  if (text.empty()) return;
  at_line_start_ = text.back() == '\n';
  write_answer(is_terminal_ ? visible_text(text) : std::string(text));
}

void AnswerOutput::write_dimmed(std::string_view text, bool color) {
  if (text.empty()) return;
  at_line_start_ = text.back() == '\n';
  std::string out = is_terminal_ ? visible_text(text) : std::string(text);
  if (color) out = std::string(kDim) + out + std::string(kNormal);
  write_answer(out);
}

void AnswerOutput::finish() {
  if (is_terminal_ && !at_line_start_) write_answer("\n");
  at_line_start_ = true;
}

Console::Console(LogLevel level, ColorMode color, bool force_progress)
    : level_(level),
      err_is_terminal_(is_terminal(STDERR_FILENO)),
      color_out_(wants_color(color, is_terminal(STDOUT_FILENO))),
      color_err_(wants_color(color, err_is_terminal_)),
      force_progress_(force_progress) {}

void Console::warn(std::string_view text) const {
  if (level_ >= LogLevel::kWarn) write_error_stream("warning: " + visible_text(text) + "\n");
}

void Console::note(std::string_view text) const {
  if (level_ >= LogLevel::kInfo) write_error_stream("note: " + visible_text(text) + "\n");
}

void Console::debug(std::string_view text) const {
  if (level_ >= LogLevel::kDebug) write_error_stream("debug: " + visible_text(text) + "\n");
}

void Console::detail(std::string_view text) const {
  if (level_ < LogLevel::kInfo || (!err_is_terminal_ && level_ < LogLevel::kDebug)) return;
  const std::string line = visible_text(text);
  write_error_stream(color_err_ ? std::string(kDim) + line + std::string(kNormal) + "\n" : line + "\n");
}

ProgressLine::ProgressLine(const Console& console, std::string what, std::string unit)
    : console_(console), what_(std::move(what)), unit_(std::move(unit)) {}

std::string ProgressLine::text(uint64_t done, uint64_t total, Clock::time_point now) const {
  const std::string percent = " (" + std::to_string(done * 100 / total) + "%)";
  if (unit_ != "bytes") return what_ + " " + std::to_string(done) + "/" + std::to_string(total) + " " + unit_ + percent;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double bytes_per_second = static_cast<double>(done - *first_done_) / std::max(seconds, 1e-3);
  std::string line = what_ + " " + human_bytes(done) + "/" + human_bytes(total) + percent;
  if (bytes_per_second < 1) return line;
  const auto left_seconds = static_cast<uint64_t>(static_cast<double>(total - done) / bytes_per_second);
  const uint64_t minutes = left_seconds / 60;
  return line + ", " + human_bytes(static_cast<uint64_t>(bytes_per_second)) + "/s, " +
         (minutes > 0 ? std::to_string(minutes) + " min " : "") + std::to_string(left_seconds % 60) + " s left";
}

void ProgressLine::update(uint64_t done, uint64_t total) {
  if (total == 0) return;
  const Clock::time_point now = Clock::now();
  if (!first_done_) first_done_ = done;
  if (console_.progress_in_place()) {
    constexpr std::chrono::milliseconds kDelay{300}, kInterval{100};
    if (now - start_ < kDelay || (is_shown_ && now - last_ < kInterval)) return;
    last_ = now;
    is_shown_ = true;
    write_error_stream("\r" + text(done, total, now) + "\x1b[K");
  } else if (console_.progress_as_lines()) {
    const uint64_t tenth = done * 10 / total;
    if (tenth <= last_tenth_) return;
    last_tenth_ = tenth;
    write_error_stream(text(done, total, now) + "\n");
  }
}

void ProgressLine::clear() {
  if (is_shown_) write_error_stream("\r\x1b[K");
  is_shown_ = false;
}

}  // namespace fathom
