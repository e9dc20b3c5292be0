// One connected socket, read and written with deadlines.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

namespace fathom {

using SteadyClock = std::chrono::steady_clock;

/// Owns the descriptor. For one thread, except shut_down().
class SocketStream {
 public:
  enum class ReadResult { kData, kClosed, kTimeout };

  /// Takes the descriptor over and makes it non-blocking.
  explicit SocketStream(int fd);
  ~SocketStream();
  SocketStream(const SocketStream&) = delete;
  SocketStream& operator=(const SocketStream&) = delete;

  /// Appends what comes, at most `max_bytes`, waiting until the deadline.
  ReadResult read_some(std::string& out, size_t max_bytes, SteadyClock::time_point deadline);
  /// False if the other side went away or took nothing for `patience`; then nothing more can be written.
  bool write_all(std::string_view bytes, std::chrono::milliseconds patience);
  /// Whether the other side closed its end or the connection broke. A client that only stops sending counts as gone, as
  /// its answer cannot be told from an answer nobody waits for.
  bool peer_gone() const;
  /// Says that nothing more will be sent, then takes and drops what still comes, so that the last answer is not lost in
  /// a reset of the connection.
  void finish_politely(std::chrono::milliseconds at_most);
  /// From any thread: every wait ends, nothing can be read or written any more.
  void shut_down();

 private:
  bool wait(short events, SteadyClock::time_point deadline) const;

  int fd_;
  bool broken_ = false;
};

}  // namespace fathom
