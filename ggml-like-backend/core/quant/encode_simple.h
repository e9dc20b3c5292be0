// Encoders of the 32-element formats: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4.
#pragma once

#include "core/quant/affine_search.h"
#include "core/quant/block_tools.h"
#include "core/quant/encode.h"
#include "core/quant/scale_search.h"

namespace fathom::quant::FATHOM_ISA {

constexpr int kN = kSmallBlock;

/// Chooses d and the codes of a block with y = d * level. The best trial's scale is rounded to half, then the one that
/// least squares takes for its codes; the better of the two stays. Without trials (kSteps = 0) the largest magnitude
/// goes to the end of the levels. Trials include that choice, f = 1, so that values which already lie on a grid stay.
template <typename Levels, int kSteps, float kFrom = 1.0f, float kTo = 1.0f>
inline HalfFactor encode_levels(const float* x, const float* w, uint8_t* codes) {
  float scaled[kN];
  const BlockScale scale = scaled_block<kN>(x, scaled);
  HalfFactor best;
  if (!scale.is_zero()) {
    float next = 0;
    if constexpr (kSteps > 0) {
      next = best_trial<Levels, kN, kSteps, kFrom, kTo>(scaled, w).scale();
    } else {
      next = largest_magnitude(scaled, kN) / Levels::kHighest;
    }
    float best_error = __builtin_inff();
    for (int round = 0; round < 2; ++round) {
      const HalfFactor d = to_half(scale, next);
      if (round > 0 && d.bits == best.bits) break;
      const LevelPass pass = pass_levels<Levels, kN>(scaled, w, d.value);
      if (pass.error < best_error) {
        best_error = pass.error;
        best = d;
      }
      if (d.value == 0 || pass.error == 0) break;
      next = pass.fit.scale();
    }
    if constexpr (!Levels::kHasZero) {  // even the smallest half may be too large a scale
      if (best_error > pass_levels<Levels, kN>(scaled, w, 0).error) best = {};
    }
  }
  level_codes<Levels, kN>(scaled, best.value, codes);
  return best;
}

struct AffineBlock {
  uint16_t d = 0, m = 0;
};

/// The same for y = d * q + m. Trials include the plain range.
template <int kTop, int kTries, float kClip>
inline AffineBlock encode_affine(const float* x, const float* w, uint8_t* codes) {
  float scaled[kN];
  const BlockScale scale = scaled_block<kN>(x, scaled);
  if (scale.is_zero()) {
    __builtin_memset(codes, 0, kN);
    return {};
  }
  const Range range = range_of(scaled, kN);
  const AffineFit plain = plain_sums<kN>(scaled, w);
  AffineFit fit = plain;
  if (range.high - range.low > 1e-14f) {
    fit = best_affine_trial<kTop, kN, kTries, kClip>(scaled, w, range, plain, Shift::kAny);
  } else {
    fit.shift = -range.low;
  }
  HalfFactor d, m;
  float best_error = __builtin_inff();
  for (int round = 0; round < 2; ++round) {
    const HalfFactor new_d = to_half(scale, fit.scale);
    // The rounding of d is made up for by m, that of m by the choice of q.
    const float shift = new_d.value != 0 ? (new_d.value * fit.wq - fit.wx) / fit.w : fit.shift;
    const HalfFactor new_m = to_half(scale, -shift);
    if (round > 0 && new_d.bits == d.bits && new_m.bits == m.bits) break;
    const float error = pass_affine<kTop, kN>(scaled, w, new_d.value, -new_m.value, &fit);
    if (error < best_error) {
      best_error = error;
      d = new_d;
      m = new_m;
    }
    if (error == 0) break;
    if (round == 0) solve(&fit, Shift::kAny);
  }
  affine_codes<kTop, kN>(scaled, d.value, -m.value, codes);
  return {d.bits, m.bits};
}

inline void pack_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 16; ++j) qs[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

inline uint32_t fifth_bits(const uint8_t* codes) {
  uint32_t bits = 0;
  for (int i = 0; i < kN; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  return bits;
}

/// Nearest doubled FP4 value: steps of 1 below 4, of 2 below 8, of 4 up to 12.
inline V8 nearest_e2m1(V8 t) {
  const V8 magnitude = t < splat8(0) ? -t : t;
  const V8 fine = round_clamped(magnitude, 0, 4);
  const V8 medium = round_clamped(magnitude * splat8(0.5f), 0, 4) * splat8(2);
  const V8 coarse = round_clamped(magnitude * splat8(0.25f), 0, 3) * splat8(4);
  const V8 v = magnitude < splat8(4) ? fine : magnitude < splat8(8) ? medium : coarse;
  return t < splat8(0) ? -v : v;
}

inline void encode(const float* x, const float* w, BlockQ4_0* out) {
  uint8_t codes[kN];
  out->d = encode_levels<IntegerLevels<-8, 7>, 8, 0.75f, 1.1875f>(x, w, codes).bits;
  pack_nibbles(codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockQ5_0* out) {
  uint8_t codes[kN];
  out->d = encode_levels<IntegerLevels<-16, 15>, 8, 0.875f, 1.09375f>(x, w, codes).bits;
  out->qh = fifth_bits(codes);
  pack_nibbles(codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockQ8_0* out) {
  uint8_t codes[kN];
  out->d = encode_levels<IntegerLevels<-127, 127>, 0>(x, w, codes).bits;
  for (int i = 0; i < kN; ++i) out->qs[i] = static_cast<int8_t>(codes[i] - 127);
}

inline void encode(const float* x, const float* w, BlockIQ4_NL* out) {
  uint8_t codes[kN];
  out->d = encode_levels<IQ4Levels, 16, 0.71875f, 1.1875f>(x, w, codes).bits;
  pack_nibbles(codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockQ4_1* out) {
  uint8_t codes[kN];
  const AffineBlock b = encode_affine<15, 4, 1.0f>(x, w, codes);
  out->d = b.d;
  out->m = b.m;
  pack_nibbles(codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockQ5_1* out) {
  uint8_t codes[kN];
  const AffineBlock b = encode_affine<31, 4, 1.0f>(x, w, codes);
  out->d = b.d;
  out->m = b.m;
  out->qh = fifth_bits(codes);
  pack_nibbles(codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockMXFP4* out) {
  const float largest = largest_magnitude(x, kN);
  __builtin_memset(out->qs, 0, 16);
  out->e = 0;
  if (largest == 0) return;
  const int exponent = __builtin_ilogbf(largest);
  float scaled[kN];  // magnitudes in [0, 2)
  for (int i = 0; i < kN; ++i) scaled[i] = __builtin_ldexpf(x[i], -exponent);
  // The largest level, 12, times 2^-3 is 1.5: that or a neighbouring power is best.
  float best_error = __builtin_inff();
  int best_power = 0;
  for (int power = -4; power <= -2; ++power) {
    const int e = exponent + power + 128;
    if (e < 0 || e > 254) continue;
    V8 sum = splat8(0);
    for (int i = 0; i < kN; i += 8) {
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
  for (int i = 0; i < kN; i += 8) {
    const V8 v = nearest_e2m1(load8(scaled + i) * splat8(__builtin_ldexpf(1.0f, -best_power)));
    for (int j = 0; j < 8; ++j) {
      const int code = kCodeOfMagnitude[static_cast<int>(magnitude(v[j]))] | (v[j] < 0 ? 8 : 0);
      const int place = i + j;
      out->qs[place % 16] |= static_cast<uint8_t>(place < 16 ? code : code << 4);
    }
  }
}

}  // namespace fathom::quant::FATHOM_ISA
