#include "server/socket_stream.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cstdint>

#include <algorithm>
#include <array>
#include <cerrno>

namespace fathom {

SocketStream::SocketStream(int fd) : fd_(fd) {
  fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK);
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // tokens are small and must not wait for each other
}

SocketStream::~SocketStream() { close(fd_); }

bool SocketStream::wait(short events, SteadyClock::time_point deadline) const {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - SteadyClock::now()).count();
    pollfd watched{fd_, events, 0};
    const int n = poll(&watched, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 60000)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return true;  // the call that follows says what is wrong
    if (n == 0 && left <= 0) return false;
  }
}

SocketStream::ReadResult SocketStream::read_some(std::string& out, size_t max_bytes, SteadyClock::time_point deadline) {
  std::array<char, 16384> buffer;
  for (;;) {
    const ssize_t n = recv(fd_, buffer.data(), std::min(buffer.size(), max_bytes), 0);
    if (n > 0) {
      out.append(buffer.data(), static_cast<size_t>(n));
      return ReadResult::kData;
    }
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return ReadResult::kClosed;
    if (!wait(POLLIN, deadline)) return ReadResult::kTimeout;
  }
}

bool SocketStream::write_all(std::string_view bytes, std::chrono::milliseconds patience) {
  while (!bytes.empty() && !broken_) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
      broken_ = !wait(POLLOUT, SteadyClock::now() + patience);
    } else {
      broken_ = true;
    }
  }
  return !broken_;
}

bool SocketStream::peer_gone() const {
  if (broken_) return true;
  pollfd watched{fd_, POLLRDHUP, 0};
  return poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

void SocketStream::finish_politely(std::chrono::milliseconds at_most) {
  shutdown(fd_, SHUT_WR);
  const SteadyClock::time_point deadline = SteadyClock::now() + at_most;
  std::string dropped;
  while (SteadyClock::now() < deadline && read_some(dropped, SIZE_MAX, deadline) == ReadResult::kData) dropped.clear();
}

void SocketStream::shut_down() { shutdown(fd_, SHUT_RDWR); }

}  // namespace fathom
