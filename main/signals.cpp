#include "main/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace fathom {
namespace {

std::atomic<int> interrupts{0};
std::atomic<bool> must_restore{false};
termios normal_mode;

// Only async-signal-safe calls from here on.
void restore_terminal() {
  if (!must_restore.exchange(false)) return;
  tcsetattr(STDIN_FILENO, TCSANOW, &normal_mode);
  constexpr char kLeavePasteMode[] = "\x1b[?2004l\x1b[0m\n";
  [[maybe_unused]] const ssize_t n = write(STDOUT_FILENO, kLeavePasteMode, sizeof kLeavePasteMode - 1);
}

void on_interrupt(int) {
  if (interrupts.fetch_add(1) > 0) {
    restore_terminal();
    _exit(130);
  }
}

void on_fatal(int signal_number) {
  restore_terminal();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void on_resize(int) {}  // its only use is that it interrupts a read

void install(int signal_number, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  sigaction(signal_number, &action, nullptr);
}

}  // namespace

void install_signal_handlers() {
  install(SIGINT, on_interrupt);
  install(SIGTERM, on_fatal);
  // A program started by nohup keeps ignoring SIGHUP.
  struct sigaction hangup {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) install(SIGHUP, on_fatal);
  install(SIGWINCH, on_resize);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a file may not grow further: the write that fails says so
}

bool interrupted() { return interrupts.load() > 0; }
void clear_interrupt() { interrupts.store(0); }

void set_terminal_to_restore(const termios* normal) {
  must_restore.store(false);
  if (normal == nullptr) return;
  normal_mode = *normal;
  must_restore.store(true);
}

}  // namespace fathom
