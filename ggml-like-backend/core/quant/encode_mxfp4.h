// The encoder of MXFP4.
#pragma once

#include "core/quant/encode.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

/// Nearest doubled FP4 value: steps of 1 below 4, of 2 below 8, of 4 up to 12.
inline V8 nearest_e2m1(V8 t) {
  const V8 magnitude = t < splat8(0) ? -t : t;
  const V8 fine = round_clamped(magnitude, 0, 4);
  const V8 medium = round_clamped(magnitude * splat8(0.5f), 0, 4) * splat8(2);
  const V8 coarse = round_clamped(magnitude * splat8(0.25f), 0, 3) * splat8(4);
  const V8 v = magnitude < splat8(4) ? fine : magnitude < splat8(8) ? medium : coarse;
  return t < splat8(0) ? -v : v;
}

inline void encode(const float* x, const float* w, BlockMXFP4* out) {
  const float largest = largest_magnitude(x, kSmallBlock);
  __builtin_memset(out->qs, 0, 16);
  out->e = 0;
  if (largest == 0) return;
  const int exponent = __builtin_ilogbf(largest);
  float scaled[kSmallBlock];  // magnitudes in [0, 2)
  for (int i = 0; i < kSmallBlock; ++i) scaled[i] = __builtin_ldexpf(x[i], -exponent);
  // The largest level, 12, times 2^-3 is 1.5: that or a neighbouring power is best.
  float best_error = __builtin_inff();
  int best_power = 0;
  for (int power = -4; power <= -2; ++power) {
    const int e = exponent + power + 128;
    if (e < 0 || e > 254) continue;
    V8 sum = splat8(0);
    for (int i = 0; i < kSmallBlock; i += 8) {
      const V8 xi = load8(scaled + i);
      const V8 error =
          xi - nearest_e2m1(xi * splat8(__builtin_ldexpf(1.0f, -power))) * splat8(__builtin_ldexpf(1.0f, power));
      sum += load8(w + i) * error * error;
    }
    if (sum8(sum) < best_error) {
      best_error = sum8(sum);
      best_power = power;
    }
  }
  if (best_error == __builtin_inff()) return;  // below the smallest scale
  out->e = static_cast<uint8_t>(exponent + best_power + 128);
  constexpr uint8_t kCodeOfMagnitude[13] = {0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7};
  for (int i = 0; i < kSmallBlock; i += 8) {
    const V8 v = nearest_e2m1(load8(scaled + i) * splat8(__builtin_ldexpf(1.0f, -best_power)));
    for (int j = 0; j < 8; ++j) {
      const int code = kCodeOfMagnitude[static_cast<int>(magnitude(v[j]))] | (v[j] < 0 ? 8 : 0);
      const int place = i + j;
      out->qs[place % 16] |= static_cast<uint8_t>(place < 16 ? code : code << 4);
    }
  }
}

}  // namespace fathom::quant::FATHOM_ISA
