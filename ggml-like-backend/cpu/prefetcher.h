// Software prefetch of the weights that are multiplied next. Static: each instruction set's files have their own copy.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fathom::cpu {

/// Runs ahead of the unpacking through the weights in memory order: sixteen rows read side by side are too many streams
/// for the hardware's prefetchers. It takes a few lines at a time between other work, so that memory is never idle.
class Prefetcher {
 public:
  /// Continues from here: the weights one tile ahead.
  void restart(const uint8_t* at) {
    at_ = at;
    step_ = 64;
  }
  /// Stays where it is: a touch of the same lines costs less than a branch around it.
  void hold() { step_ = 0; }
  void go_on() { step_ = 64; }
  template <int kLines> inline __attribute__((always_inline)) void lines() {
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) _mm_prefetch(reinterpret_cast<const char*>(at_ + 64 * i), _MM_HINT_T0);
    at_ += step_ * kLines;
  }
  /// n lines into the second-level cache, for work that leaves no room in the first.
  inline __attribute__((always_inline)) void lines_to_second(int n) {
    for (int i = 0; i < n; ++i, at_ += 64) _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }
  const uint8_t* at() const { return at_; }

 private:
  const uint8_t* at_ = nullptr;
  int64_t step_ = 64;
};

}  // namespace fathom::cpu
