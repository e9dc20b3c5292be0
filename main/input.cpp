#include "main/input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/printable.h"
#include "main/signals.h"

namespace fathom {
namespace {

constexpr size_t kMaxInputBytes = std::numeric_limits<int32_t>::max();  // what the tokenizer takes

std::string read_all(int fd, const std::string& name) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0) {
      if (errno == EINTR && !interrupted()) continue;
      if (errno == EINTR) throw Error(ErrorCode::kInterrupted, "interrupted");
      throw Error(ErrorCode::kModel, name + ": cannot be read; " + std::strerror(errno));
    }
    if (text.size() + static_cast<size_t>(n) > kMaxInputBytes) {
      throw Error(ErrorCode::kUsage, name + ": too long; expected at most " + std::to_string(kMaxInputBytes) +
                                         " bytes; try a shorter text");
    }
    text.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace

std::string read_input(const std::string& path, const std::string& where) {
  if (path == "-") return read_all(STDIN_FILENO, where + ": standard input");
  const std::string name = where + ": " + in_quotes(path);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    throw Error(ErrorCode::kModel, name + ": cannot be opened; " + std::strerror(errno) + "; try another path");
  try {
    std::string text = read_all(fd, name);
    ::close(fd);
    return text;
  } catch (...) {
    ::close(fd);
    throw;
  }
}

std::string with_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  return path.starts_with("~/") && home != nullptr ? home + path.substr(1) : path;
}

std::optional<std::string> read_piped_input() {
  struct stat info {};
  if (::fstat(STDIN_FILENO, &info) != 0) return std::nullopt;
  if (!S_ISFIFO(info.st_mode) && !S_ISREG(info.st_mode) && !S_ISSOCK(info.st_mode)) return std::nullopt;
  return read_all(STDIN_FILENO, "standard input");
}

std::string without_last_newline(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

std::string text_argument(const std::optional<std::string>& argument, const std::string& where) {
  if (argument && *argument != "-") return *argument;
  if (argument) return read_input("-", where);
  std::optional<std::string> piped = read_piped_input();
  if (!piped)
    throw Error(ErrorCode::kUsage,
                where + ": no input; expected an argument, or text on standard input; try fathom " + where + " --help");
  return *std::move(piped);
}

}  // namespace fathom
