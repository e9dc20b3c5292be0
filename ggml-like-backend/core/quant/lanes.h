// Vectors of floats for the encoders: eight elements of a row, or as many trial scales as the instruction set has
// lanes.
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
template <typename V> inline V splat(float f) { return V{} + f; }
inline V8 load8(const float* p) { return load<V8>(p); }
inline V8 splat8(float f) { return splat<V8>(f); }
inline float sum8(V8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

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
  using Bytes = uint8_t __attribute__((vector_size(8)));
  const auto bytes = __builtin_convertvector(v, Bytes);
  __builtin_memcpy(p, &bytes, 8);
}

// The standard library's inline functions stay out of files compiled for one instruction set: an instance compiled
// there could replace the portable one at link time.
template <typename T> inline T least_of(T a, T b) { return b < a ? b : a; }
template <typename T> inline T most_of(T a, T b) { return a < b ? b : a; }
inline float magnitude(float v) { return __builtin_fabsf(v); }

/// Largest magnitude of n floats, n a multiple of 8.
inline float largest_magnitude(const float* x, int n) {
  V8 largest = splat8(0);
  for (int i = 0; i < n; i += 8) {
    const V8 v = load8(x + i);
    largest = most(largest, most(v, -v));
  }
  float out = 0;
  for (int j = 0; j < 8; ++j) out = most_of(out, largest[j]);
  return out;
}

}  // namespace fathom::quant::FATHOM_ISA
