#include "sampling/stop_matcher.h"

#include <utility>

#include "core/error.h"

namespace fathom {

void validate_stop_strings(std::span<const std::string> stop_strings) {
  if (stop_strings.size() > kMaxStopStrings) {
    throw Error(ErrorCode::kUsage, "stop: too many stop strings; expected at most " + std::to_string(kMaxStopStrings) +
                                       ", got " + std::to_string(stop_strings.size()) + "; try fewer");
  }
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    if (!stop_strings[i].empty() && stop_strings[i].size() <= kMaxStopBytes) continue;
    throw Error(ErrorCode::kUsage, "stop: stop string " + std::to_string(i) + " has a wrong length; expected 1 to " +
                                       std::to_string(kMaxStopBytes) + " bytes, got " +
                                       std::to_string(stop_strings[i].size()) +
                                       (stop_strings[i].empty() ? "; try leaving it out" : "; try a shorter one"));
  }
}

StopMatcher::StopMatcher(std::span<const std::string> stop_strings) {
  nodes_.push_back({kRoot, kNone, kNone, kRoot, kNone, 0, '\0'});
  for (size_t i = 0; i < stop_strings.size(); ++i) {
    FATHOM_CHECK(!stop_strings[i].empty(), "an empty stop string matches everywhere");
    lengths_.push_back(stop_strings[i].size());
    int32_t node = kRoot;
    for (const char byte : stop_strings[i]) {
      int32_t next = child(node, byte);
      if (next == kNone) {
        next = static_cast<int32_t>(nodes_.size());
        Node& parent = nodes_[static_cast<size_t>(node)];
        const Node added{node, kNone, parent.first_child, kRoot, kNone, parent.depth + 1, byte};
        parent.first_child = next;
        nodes_.push_back(added);
      }
      node = next;
    }
    int32_t& stop = nodes_[static_cast<size_t>(node)].stop;
    if (stop == kNone) stop = static_cast<int32_t>(i);
  }
  // Breadth first: the fail link of a node is known before those of longer prefixes are asked for.
  std::vector<int32_t> queue{kRoot};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int32_t i = queue[head];
    Node& node = nodes_[static_cast<size_t>(i)];
    if (node.depth > 1) node.fail = step(nodes_[static_cast<size_t>(node.parent)].fail, node.byte);
    if (node.stop == kNone) node.stop = nodes_[static_cast<size_t>(node.fail)].stop;
    for (int32_t c = node.first_child; c != kNone; c = nodes_[static_cast<size_t>(c)].next_sibling) queue.push_back(c);
  }
}

int32_t StopMatcher::child(int32_t node, char byte) const {
  int32_t c = nodes_[static_cast<size_t>(node)].first_child;
  while (c != kNone && nodes_[static_cast<size_t>(c)].byte != byte) c = nodes_[static_cast<size_t>(c)].next_sibling;
  return c;
}

int32_t StopMatcher::step(int32_t node, char byte) const {
  for (;;) {
    const int32_t next = child(node, byte);
    if (next != kNone) return next;
    if (node == kRoot) return kRoot;
    node = nodes_[static_cast<size_t>(node)].fail;
  }
}

std::string StopMatcher::feed(std::string_view text) {
  if (stopped()) return {};
  held_.reserve(held_.size() + text.size());
  for (const char byte : text) {
    held_.push_back(byte);
    state_ = step(state_, byte);
    const int32_t stop = nodes_[static_cast<size_t>(state_)].stop;
    if (stop != kNone) {
      matched_ = static_cast<size_t>(stop);
      held_.resize(held_.size() - lengths_[*matched_]);
      return std::exchange(held_, {});
    }
  }
  const size_t n_safe = held_.size() - nodes_[static_cast<size_t>(state_)].depth;
  std::string safe = held_.substr(0, n_safe);
  held_.erase(0, n_safe);
  return safe;
}

std::string StopMatcher::flush() {
  state_ = kRoot;
  return std::exchange(held_, {});
}

}  // namespace fathom
