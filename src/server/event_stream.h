// Server-sent events. Source: WHATWG HTML, section 9.2.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "server/json_fields.h"
#include "server/socket_stream.h"

namespace fathom {

/// One event as text: an optional event line, a data line for each line of `data`, and the empty line.
std::string format_event(std::string_view name, std::string_view data);

/// Writes events, and a comment whenever nothing was written for `keep_alive`. Once a write fails, later ones do
/// nothing.
class EventStream {
 public:
  using Write = std::function<bool(std::string_view)>;
  using Now = std::function<SteadyClock::time_point()>;

  EventStream(
      Write write, std::chrono::milliseconds keep_alive, Now now = [] { return SteadyClock::now(); });

  void event(std::string_view name, const ChatJson& data) { send(format_event(name, dump_json(data))); }
  void data(const ChatJson& data) { event({}, data); }
  void raw(std::string_view data) { send(format_event({}, data)); }
  /// Called often while there is nothing to say; writes the comment when it is time.
  void tick();
  bool broken() const { return broken_; }

 private:
  void send(std::string_view bytes);

  Write write_;
  std::chrono::milliseconds keep_alive_;
  Now now_;
  SteadyClock::time_point last_;
  bool broken_ = false;
};

}  // namespace fathom
