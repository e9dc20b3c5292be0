#include "main/line_editor.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "main/display_width.h"
#include "main/signals.h"
#include "main/terminal.h"

namespace fathom {
namespace {

constexpr int kEscapeWaitMs = 50;  // a terminal sends a key's bytes together; a slow line may part them

struct WindowSize {
  int columns, rows;
};

WindowSize window_size() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {80, 24};
  // Below four columns nothing can be laid out: lines then wrap as the terminal likes.
  return {std::max<int>(size.ws_col, 4), std::max<int>(size.ws_row, 2)};
}

int text_width(std::string_view text) {
  int width = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t n = character_length(text, at);
    width += character_width(text.substr(at, n));
    at += n;
  }
  return width;
}

bool is_dumb_terminal() {
  const char* term = std::getenv("TERM");
  return term == nullptr || *term == '\0' || std::string_view(term) == "dumb";
}

/// More to read right now?
bool has_input(int wait_ms) {
  pollfd fd{STDIN_FILENO, POLLIN, 0};
  return poll(&fd, 1, wait_ms) > 0;
}

constexpr std::string_view kPasteModeOn = "\x1b[?2004h";
constexpr std::string_view kPasteModeOff = "\x1b[?2004l";

}  // namespace

TerminalMode::TerminalMode(Signals signals) {
  if (tcgetattr(STDIN_FILENO, &normal_) != 0) return;
  termios mode = normal_;
  mode.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  if (signals == Signals::kKeys) {
    mode.c_lflag &= ~static_cast<tcflag_t>(ISIG | IEXTEN);
    mode.c_iflag &= ~static_cast<tcflag_t>(ICRNL | INLCR | IXON);
  }
  mode.c_cc[VMIN] = 1;
  mode.c_cc[VTIME] = 0;
  set_terminal_to_restore(&normal_);
  is_changed_ = tcsetattr(STDIN_FILENO, TCSADRAIN, &mode) == 0;
}

TerminalMode::~TerminalMode() {
  if (is_changed_) tcsetattr(STDIN_FILENO, TCSADRAIN, &normal_);
  set_terminal_to_restore(nullptr);
}

LineEditor::Outcome LineEditor::read(const std::string& prompt, const std::string& continuation, std::string& text) {
  if (is_dumb_terminal()) return read_plain(prompt, text);
  prompt_ = prompt;
  continuation_ = continuation;
  buffer_.set(text);
  history_idx_ = history_.size();
  draft_.clear();
  is_searching_ = false;
  drawn_cursor_row_ = first_visible_row_ = 0;
  outcome_ = Outcome::kLine;
  TerminalMode mode(TerminalMode::Signals::kKeys);
  write_answer(kPasteModeOn);
  Step step = Step::kGoOn;
  while (step == Step::kGoOn) {
    Key key;
    bool is_quiet = false;
    while (step == Step::kGoOn && keys_.next(key, is_quiet)) {
      if (!is_searching_ || !handle_search(key)) step = handle(key);
    }
    if (step == Step::kDone) break;
    // Drawing waits while bytes keep coming: a paste without brackets would else be drawn once for each.
    if (keys_.has_pending() && !keys_.in_paste() && !has_input(kEscapeWaitMs)) {
      is_quiet = true;
      while (step == Step::kGoOn && keys_.next(key, is_quiet)) {
        if (!is_searching_ || !handle_search(key)) step = handle(key);
      }
      if (step == Step::kDone) break;
    }
    if (!keys_.in_paste() && !has_input(0)) draw();
    char bytes[4096];
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (n > 0) {
      keys_.feed({bytes, static_cast<size_t>(n)});
    } else if (n < 0 && errno == EINTR) {
      if (!interrupted()) continue;  // the window changed its size
      clear_interrupt();
      outcome_ = Outcome::kInterrupted;
      break;
    } else {
      outcome_ = Outcome::kEnd;
      break;
    }
  }
  leave_drawing();
  write_answer(kPasteModeOff);
  text = buffer_.text();
  if (outcome_ == Outcome::kLine) history_.add(text);
  return outcome_;
}

LineEditor::Outcome LineEditor::read_plain(const std::string& prompt, std::string& text) {
  write_answer(prompt);
  text.clear();
  for (;;) {
    char c;
    const ssize_t n = ::read(STDIN_FILENO, &c, 1);
    if (n < 0 && errno == EINTR) {
      if (!interrupted()) continue;
      clear_interrupt();
      write_answer("\n");
      return Outcome::kInterrupted;
    }
    if (n <= 0) return text.empty() ? Outcome::kEnd : Outcome::kLine;
    if (c == '\n') break;
    text += c;
  }
  history_.add(text);
  return Outcome::kLine;
}

LineEditor::Step LineEditor::handle(const Key& key) {
  switch (key.kind) {
    case Key::Kind::kText:
    case Key::Kind::kPaste: buffer_.insert(key.text); break;
    case Key::Kind::kEnter: return Step::kDone;
    case Key::Kind::kNewline: buffer_.insert("\n"); break;
    case Key::Kind::kTab: complete(); break;
    case Key::Kind::kBackspace: buffer_.erase_before(); break;
    case Key::Kind::kDelete: buffer_.erase_after(); break;
    case Key::Kind::kLeft: buffer_.left(); break;
    case Key::Kind::kRight: buffer_.right(); break;
    case Key::Kind::kUp:
      if (!buffer_.up()) browse(-1);
      break;
    case Key::Kind::kDown:
      if (!buffer_.down()) browse(+1);
      break;
    case Key::Kind::kHome: buffer_.line_begin(); break;
    case Key::Kind::kEnd: buffer_.line_end(); break;
    case Key::Kind::kWordLeft: buffer_.word_left(); break;
    case Key::Kind::kWordRight: buffer_.word_right(); break;
    case Key::Kind::kControl: return handle_control(key.letter);
    case Key::Kind::kAlt:
      if (key.letter == 'b') buffer_.word_left();
      if (key.letter == 'f') buffer_.word_right();
      if (key.letter == 'd') buffer_.kill_word_after();
      if (key.letter == '\b') buffer_.kill_word_before();
      break;
    case Key::Kind::kEscape:
    case Key::Kind::kUnknown: break;
  }
  return Step::kGoOn;
}

LineEditor::Step LineEditor::handle_control(char letter) {
  switch (letter) {
    case 'a': buffer_.line_begin(); break;
    case 'b': buffer_.left(); break;
    case 'c': outcome_ = Outcome::kInterrupted; return Step::kDone;
    case 'd':
      if (buffer_.text().empty()) {
        outcome_ = Outcome::kEnd;
        return Step::kDone;
      }
      buffer_.erase_after();
      break;
    case 'e': buffer_.line_end(); break;
    case 'f': buffer_.right(); break;
    case 'g': outcome_ = Outcome::kOpenEditor; return Step::kDone;
    case 'k': buffer_.kill_to_line_end(); break;
    case 'l':
      write_answer("\x1b[H\x1b[2J");
      drawn_cursor_row_ = 0;
      break;
    case 'n': browse(+1); break;
    case 'p': browse(-1); break;
    case 'r':
      is_searching_ = true;
      search_.clear();
      search_idx_ = history_.size();
      break;
    case 't': buffer_.swap_characters(); break;
    case 'u': buffer_.kill_to_line_begin(); break;
    case 'w': buffer_.kill_word_before(); break;
    case 'y': buffer_.yank(); break;
    case 'z': stop_process(); break;
    default: break;
  }
  return Step::kGoOn;
}

/// Ctrl-R finds older entries, Ctrl-C, Ctrl-G and Escape give up; every other key takes what was found and then does
/// what it always does (false: it is still to be handled).
bool LineEditor::handle_search(const Key& key) {
  const bool is_control = key.kind == Key::Kind::kControl;
  size_t before = search_idx_ == history_.size() ? search_idx_ : search_idx_ + 1;
  if (key.kind == Key::Kind::kText) {
    search_ += key.text;
  } else if (key.kind == Key::Kind::kBackspace) {
    if (!search_.empty()) search_.resize(search_.size() - character_length_before(search_, search_.size()));
    before = history_.size();
  } else if (is_control && key.letter == 'r') {
    before = search_idx_;
  } else {
    is_searching_ = false;
    const bool gives_up = key.kind == Key::Kind::kEscape || (is_control && (key.letter == 'c' || key.letter == 'g'));
    if (!gives_up && search_idx_ < history_.size()) buffer_.set(history_.entry(search_idx_));
    return gives_up;
  }
  const size_t found = search_.empty() ? history_.size() : history_.search_back(search_, before);
  if (found < history_.size() || search_.empty()) search_idx_ = found;
  return true;
}

void LineEditor::browse(int direction) {
  if ((direction < 0 && history_idx_ == 0) || (direction > 0 && history_idx_ >= history_.size())) return;
  if (history_idx_ == history_.size()) draft_ = buffer_.text();
  history_idx_ += direction < 0 ? -1 : 1;
  buffer_.set(history_idx_ == history_.size() ? draft_ : history_.entry(history_idx_));
}

void LineEditor::complete() {
  const std::string& typed = buffer_.text();
  std::vector<std::string> fits;
  if (!typed.empty() && buffer_.cursor() == typed.size()) {
    for (const std::string& word : completions_) {
      if (word.starts_with(typed)) fits.push_back(word);
    }
  }
  if (fits.empty()) return typed.starts_with("/") ? void() : buffer_.insert("  ");
  std::string common = fits[0];
  for (const std::string& word : fits)
    common.resize(static_cast<size_t>(std::mismatch(common.begin(), common.end(), word.begin(), word.end()).first -
                                      common.begin()));
  buffer_.set(fits.size() == 1 ? common + " " : common);
}

void LineEditor::draw() {
  if (is_searching_) return draw_search();
  const WindowSize window = window_size();
  const std::string_view text = buffer_.text();
  const Layout layout =
      Layout::of(text, buffer_.cursor(), window.columns, text_width(prompt_), text_width(continuation_));
  // A text taller than the window shows the rows around the cursor.
  const size_t height = std::min(layout.rows.size(), static_cast<size_t>(window.rows - 1));
  first_visible_row_ = std::min(first_visible_row_, layout.rows.size() - height);
  if (layout.cursor_row < first_visible_row_) first_visible_row_ = layout.cursor_row;
  if (layout.cursor_row >= first_visible_row_ + height) first_visible_row_ = layout.cursor_row - height + 1;

  std::string out = "\r";
  if (drawn_cursor_row_ > 0) out += "\x1b[" + std::to_string(drawn_cursor_row_) + "A";
  out += "\x1b[J";
  for (size_t r = first_visible_row_; r < first_visible_row_ + height; ++r) {
    const Layout::Row& row = layout.rows[r];
    if (r > first_visible_row_) out += "\r\n";
    if (row.starts_line) out += row.is_first ? prompt_ : continuation_;
    for (size_t at = row.begin; at < row.end;) {
      const size_t n = character_length(text, at);
      out += display_text(text.substr(at, n));
      at += n;
    }
  }
  const size_t below = first_visible_row_ + height - 1 - layout.cursor_row;
  if (below > 0) out += "\x1b[" + std::to_string(below) + "A";
  out += "\r";
  if (layout.cursor_column > 0) out += "\x1b[" + std::to_string(layout.cursor_column) + "C";
  drawn_cursor_row_ = layout.cursor_row - first_visible_row_;
  write_answer(out);
}

void LineEditor::draw_search() {
  const int columns = window_size().columns;
  const bool is_found = search_idx_ < history_.size();
  std::string line = (is_found || search_.empty() ? "(search) " : "(nothing found) ") + search_ + ": " +
                     (is_found ? history_.entry(search_idx_) : "");
  std::string shown;
  int width = 0;
  for (size_t at = 0; at < line.size();) {
    const size_t n = character_length(line, at);
    const std::string piece = line[at] == '\n' ? " " : display_text(std::string_view(line).substr(at, n));
    width += text_width(piece);
    if (width >= columns) break;
    shown += piece;
    at += n;
  }
  std::string out = "\r";
  if (drawn_cursor_row_ > 0) out += "\x1b[" + std::to_string(drawn_cursor_row_) + "A";
  drawn_cursor_row_ = 0;
  write_answer(out + "\x1b[J" + shown);
}

/// The cursor goes below what was typed.
void LineEditor::leave_drawing() {
  is_searching_ = false;
  while (buffer_.down()) {
  }
  buffer_.line_end();
  if (outcome_ != Outcome::kEnd || !buffer_.text().empty()) draw();
  write_answer("\r\n");
}

/// Ctrl-Z: as if the terminal had sent it.
void LineEditor::stop_process() {
  write_answer("\r\n");
  write_answer(kPasteModeOff);
  termios raw{};
  tcgetattr(STDIN_FILENO, &raw);
  termios cooked = raw;
  cooked.c_lflag |= ICANON | ECHO | ISIG | IEXTEN;
  cooked.c_iflag |= ICRNL | IXON;
  tcsetattr(STDIN_FILENO, TCSADRAIN, &cooked);
  raise(SIGTSTP);
  // Here again after fg.
  tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  write_answer(kPasteModeOn);
  drawn_cursor_row_ = 0;
}

}  // namespace fathom
