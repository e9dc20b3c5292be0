// Eight floats at a time in portable vector form: the compiler maps it to whatever the machine has.
#pragma once

#include <cstring>

namespace fathom::quant {

using V8 = float __attribute__((vector_size(32)));

inline V8 load8(const float* p) {
  V8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store8(float* p, V8 v) { std::memcpy(p, &v, sizeof(v)); }
inline V8 splat8(float f) { return V8{f, f, f, f, f, f, f, f}; }
inline float sum8(V8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

/// Nearest integers within [low, high]; low and high are integers below 2^22 in magnitude.
inline V8 round_clamped8(V8 v, float low, float high) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction, so that the sum itself rounds to nearest even.
  const V8 magic = splat8(12582912.0f);
  v = v < splat8(low) ? splat8(low) : v;
  v = v > splat8(high) ? splat8(high) : v;
  return (v + magic) - magic;
}

}  // namespace fathom::quant
