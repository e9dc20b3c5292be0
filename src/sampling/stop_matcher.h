// Finds stop strings in streamed text, across the borders of tokens, and holds back what may become one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Caps for what a request may ask for; a matcher takes memory and set-up time linear in the bytes of its strings.
constexpr size_t kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;

/// Throws Error{kUsage} for too many, an empty or a too long string.
void validate_stop_strings(std::span<const std::string> stop_strings);

/// Looks for several strings at once (Aho-Corasick, CACM 18(6), 1975): time linear in the text whatever the strings.
/// The string that is complete first ends the text; of those complete at the same byte, the longest. The stop string is
/// not part of the text. If text and stop strings are whole UTF-8, so is every piece returned: a hold-back begins where
/// a stop string begins. One stream, one thread.
class StopMatcher {
 public:
  /// No string may be empty (checked). Without strings everything passes at once.
  explicit StopMatcher(std::span<const std::string> stop_strings);

  /// Takes the next piece and returns what can be shown now: everything before a stop string, or up to the longest
  /// suffix that could still become one. Nothing after a stop.
  std::string feed(std::string_view text);
  /// The text is over: returns what was held back.
  std::string flush();

  bool stopped() const { return matched_.has_value(); }
  /// Index of the stop string that ended the text.
  std::optional<size_t> matched() const { return matched_; }
  /// Bytes fed and not returned yet.
  size_t held_bytes() const { return held_.size(); }

 private:
  /// A prefix of some stop string. Children form a linked list: nearly all nodes have one.
  struct Node {
    int32_t parent;
    int32_t first_child;
    int32_t next_sibling;
    int32_t fail;    // the longest proper suffix that is a node too
    int32_t stop;    // index of the longest stop string that ends here, or kNone
    uint32_t depth;  // bytes
    char byte;       // the last one
  };
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kRoot = 0;

  int32_t child(int32_t node, char byte) const;
  int32_t step(int32_t node, char byte) const;

  std::vector<Node> nodes_;
  std::vector<size_t> lengths_;  // of the stop strings
  int32_t state_ = kRoot;
  std::string held_;  // the last nodes_[state_].depth bytes fed
  std::optional<size_t> matched_;
};

}  // namespace fathom
