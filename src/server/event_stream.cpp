#include "server/event_stream.h"

namespace fathom {

std::string format_event(std::string_view name, std::string_view data) {
  std::string out;
  if (!name.empty()) out.append("event: ").append(name).append("\n");
  for (;;) {
    const size_t end = data.find('\n');
    out.append("data: ").append(data.substr(0, end)).append("\n");
    if (end == std::string_view::npos) break;
    data.remove_prefix(end + 1);
  }
  return out + "\n";
}

EventStream::EventStream(Write write, std::chrono::milliseconds keep_alive, Now now)
    : write_(std::move(write)), keep_alive_(keep_alive), now_(std::move(now)), last_(now_()) {}

void EventStream::send(std::string_view bytes) {
  if (broken_) return;
  broken_ = !write_(bytes);
  last_ = now_();
}

void EventStream::tick() {
  if (now_() - last_ >= keep_alive_) send(": keep-alive\n\n");
}

}  // namespace fathom
