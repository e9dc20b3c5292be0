// What steps cost, as far as measured: which may hold up the answers in progress, and for how long.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace fathom {

/// Below this a chunk costs nearly as much as a larger one: all weights are read for it.
constexpr int64_t kMinChunkTokens = 32;

/// Learns what a prompt token and a decode step cost; forgets half of it in a few steps, as cost grows with the
/// position. Nothing it says changes a bit of any answer.
class ChunkSizer {
 public:
  explicit ChunkSizer(std::chrono::milliseconds max_stall)
      : max_stall_s_(std::chrono::duration<double>(max_stall).count()) {}

  /// Whether answers can wait for the end of a step with so many prompt tokens. Not before anything was measured.
  bool is_short(int64_t prompt_tokens) const {
    return token_s_ > 0 && static_cast<double>(prompt_tokens) * token_s_ + decode_s_ <= max_stall_s_;
  }

  /// How long the answers wait for a long step before they get a step inside it: this and the step make max_stall. At
  /// least half of it, or the long step would not come to its end.
  double patience_s() const { return std::max(max_stall_s_ / 2, max_stall_s_ - decode_s_); }

  /// Prompt tokens of a step inside a long one.
  int64_t inside_tokens() const {
    if (token_s_ == 0) return kMinChunkTokens;
    const double room = std::max(0.0, max_stall_s_ / 2 - decode_s_) / token_s_;
    return std::max(kMinChunkTokens, static_cast<int64_t>(std::min(room, 1e6)) / kMinChunkTokens * kMinChunkTokens);
  }

  /// Returns the seconds of the step that its decode parts are to blame for.
  double measured(int64_t prompt_tokens, int64_t decode_parts, double seconds) {
    if (prompt_tokens == 0) {
      decode_s_ = blend(decode_s_, seconds);
      return seconds;
    }
    const double decode = decode_parts > 0 ? std::min(decode_s_, seconds) : 0;
    if (prompt_tokens >= kMinChunkTokens)
      token_s_ = blend(token_s_, (seconds - decode) / static_cast<double>(prompt_tokens));
    return decode;
  }

 private:
  static double blend(double old, double now) { return old == 0 ? now : 0.7 * old + 0.3 * now; }

  double max_stall_s_;
  double token_s_ = 0;   // per prompt token
  double decode_s_ = 0;  // per step without prompt tokens
};

}  // namespace fathom
