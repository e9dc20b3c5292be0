// How many prompt tokens a step may take, so that the answers beside them do not wait too long.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace fathom {

/// Below this a chunk costs nearly as much as a larger one: all weights are read for it.
constexpr int64_t kMinChunkTokens = 32;

/// Learns what a prompt token and a decode step cost; forgets half of it in a few steps, as cost grows with the position.
/// Sizes change no bit of any answer.
class ChunkSizer {
 public:
  ChunkSizer(int64_t largest, std::chrono::milliseconds max_stall)
      : largest_(largest), max_stall_s_(std::chrono::duration<double>(max_stall).count()) {}

  /// Prompt tokens of the next step. Without answers in progress nobody waits.
  int64_t next(bool answers_wait) const {
    if (!answers_wait) return largest_;
    if (token_s_ == 0) return std::min(largest_, kMinChunkTokens);
    const double room = std::max(0.0, max_stall_s_ - decode_s_) / token_s_;
    if (room >= static_cast<double>(largest_)) return largest_;
    const int64_t whole = static_cast<int64_t>(room) / kMinChunkTokens * kMinChunkTokens;
    return std::min(largest_, std::max(kMinChunkTokens, whole));
  }

  /// Returns the seconds of the step that its decode parts are to blame for.
  double measured(int64_t prompt_tokens, int64_t decode_parts, double seconds) {
    if (prompt_tokens == 0) {
      decode_s_ = blend(decode_s_, seconds);
      return seconds;
    }
    const double decode = decode_parts > 0 ? std::min(decode_s_, seconds) : 0;
    if (prompt_tokens >= kMinChunkTokens) token_s_ = blend(token_s_, (seconds - decode) / static_cast<double>(prompt_tokens));
    return decode;
  }

 private:
  static double blend(double old, double now) { return old == 0 ? now : 0.7 * old + 0.3 * now; }

  int64_t largest_;
  double max_stall_s_;
  double token_s_ = 0;   // per prompt token
  double decode_s_ = 0;  // per step without prompt tokens
};

}  // namespace fathom
