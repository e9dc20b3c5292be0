#include "main/lines.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/printable.h"
#include "main/signals.h"
#include "main/terminal.h"

namespace fathom {

void transform_lines(const std::string& where,
                     const std::function<std::string(const std::string& line, const std::string& where)>& transform,
                     const std::string& path) {
  const bool is_file = path != "-";
  const int fd = is_file ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
  if (fd < 0)
    throw Error(ErrorCode::kModel, where + ": " + in_quotes(path) + ": cannot be opened; " + std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() {
      if (fd >= 0) ::close(fd);
    }
  } closer{is_file ? fd : -1};
  std::string pending, out;
  size_t n_lines = 0;
  auto answer = [&](const std::string& line) {
    out += transform(line, where + ": line " + std::to_string(++n_lines)) + "\n";
  };
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR && !interrupted()) continue;
    if (n < 0 && errno == EINTR) throw Error(ErrorCode::kInterrupted, "interrupted");
    if (n < 0) throw Error(ErrorCode::kModel, where + ": input cannot be read; " + std::strerror(errno));
    if (n == 0) break;
    size_t scanned = pending.size(), begin = 0;
    pending.append(buffer, static_cast<size_t>(n));
    for (size_t end; (end = pending.find('\n', scanned)) != std::string::npos; begin = scanned = end + 1)
      answer(pending.substr(begin, end - begin));
    pending.erase(0, begin);
    write_answer(out);
    out.clear();
  }
  if (!pending.empty()) answer(pending);
  write_answer(out);
}

}  // namespace fathom
