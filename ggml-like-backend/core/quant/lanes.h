// Vectors of floats for the encoders: eight elements of a row, or as many trial scales or blocks as the instruction set
// has lanes.
//
// Sums over elements are taken in eight lanes everywhere, trials do not meet each other, and products are not fused
// with sums (core/CMakeLists.txt), so that every instruction set writes the same bytes.
#pragma once

#include <cstdint>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fathom::quant::FATHOM_ISA {

#ifdef __AVX512F__
constexpr int kTrialLanes = 16;
#else
constexpr int kTrialLanes = 8;
#endif
using V8 = float __attribute__((vector_size(32)));
using VT = float __attribute__((vector_size(4 * kTrialLanes)));
using VI = int32_t __attribute__((vector_size(4 * kTrialLanes)));

/// Trials come in whole vectors: what is too much repeats the last one.
constexpr int whole_lanes(int n) { return (n + kTrialLanes - 1) / kTrialLanes * kTrialLanes; }
/// Room for n trials on every instruction set.
constexpr int trial_room(int n) { return (n + 15) / 16 * 16; }

template <typename V> inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename V> inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
/// (f - 0 is f, which the compiler knows; 0 + f would turn -0 into 0 and cost an addition.)
template <typename V> inline V splat(float f) { return f - V{}; }
inline V8 load8(const float* p) { return load<V8>(p); }
inline V8 splat8(float f) { return splat<V8>(f); }
/// ((v0 + v4) + (v1 + v5)) + ((v2 + v6) + (v3 + v7))
inline float sum8(V8 v) {
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  return v[0] + v[2];
}

/// Per lane; neither may be NaN.
template <typename V> inline V least(V a, V b) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) return _mm512_min_ps(a, b);
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) return _mm256_min_ps(a, b);
#endif
  return a < b ? a : b;
}
template <typename V> inline V most(V a, V b) {
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) return _mm512_max_ps(a, b);
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) return _mm256_max_ps(a, b);
#endif
  return a > b ? a : b;
}

/// Nearest integers within [low, high], halves to even; low and high are integers below 2^22 in magnitude.
template <typename V> inline V round_clamped(V v, float low, float high) {
  v = least(most(v, splat<V>(low)), splat<V>(high));
#ifdef __AVX512F__
  if constexpr (sizeof(V) == 64) return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
  // Adding 1.5 * 2^23 leaves no bits for a fraction, so that the sum itself rounds.
  const V magic = splat<V>(12582912.0f);
  return (v + magic) - magic;
}
inline float round_clamped(float v, float low, float high) {
  v = v > low ? v : low;
  v = v < high ? v : high;
  return (v + 12582912.0f) - 12582912.0f;
}

/// Eight whole numbers 0..255 as bytes.
inline void store_bytes(uint8_t* p, V8 v) {
  using Integers = int32_t __attribute__((vector_size(32)));  // straight to bytes would go one by one
  using Bytes = uint8_t __attribute__((vector_size(8)));
  const auto bytes = __builtin_convertvector(__builtin_convertvector(v, Integers), Bytes);
  __builtin_memcpy(p, &bytes, 8);
}

// The standard library's inline functions stay out of files compiled for one instruction set: an instance compiled
// there could replace the portable one at link time.
template <typename T> inline T least_of(T a, T b) { return b < a ? b : a; }
template <typename T> inline T most_of(T a, T b) { return a < b ? b : a; }
inline float magnitude(float v) { return __builtin_fabsf(v); }

/// Least and largest of the eight lanes.
inline float least8(V8 v) {
  v = least(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = least(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  return least_of(v[0], v[1]);
}
inline float most8(V8 v) {
  v = most(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = most(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  return most_of(v[0], v[1]);
}

/// Least and largest of n floats, n a multiple of 8, at least 8.
struct Range {
  float low, high;
};
inline Range range_of(const float* x, int n) {
  V8 low = load8(x), high = low;
  for (int i = 8; i < n; i += 8) {
    const V8 v = load8(x + i);
    low = least(low, v);
    high = most(high, v);
  }
  return {least8(low), most8(high)};
}

/// The element of largest magnitude, of equals the first.
inline float extreme_of(const float* x, int n) {
  const Range range = range_of(x, n);
  if (range.high > -range.low) return range.high;
  if (range.high < -range.low) return range.low;
  int i = 0;
  while (magnitude(x[i]) != range.high) ++i;
  return x[i];
}

inline float largest_magnitude(const float* x, int n) {
  const Range range = range_of(x, n);
  return most_of(range.high, -range.low);
}

/// Place of the least and of the largest of n values, of nearly equal ones the first; n at most 64. Without their last
/// bits, floats order as integers do, so that a value and its place are compared in one.
inline int32_t ordered_bits(float v) {
  int32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  return (bits < 0 ? bits ^ 0x7fffffff : bits) & ~63;
}
inline int place_of_least(const float* values, int n) {
  int32_t best = 0x7fffffff;
  for (int t = 0; t < n; ++t) best = least_of(best, ordered_bits(values[t]) | t);
  return best & 63;
}
inline int place_of_largest(const float* values, int n) {
  int32_t best = -0x7fffffff - 1;
  for (int t = 0; t < n; ++t) best = most_of(best, ordered_bits(values[t]) | (63 - t));
  return 63 - (best & 63);
}

}  // namespace fathom::quant::FATHOM_ISA
