// Encoders of the 32-element formats that have a half-precision scale: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL.
#pragma once

#include "core/quant/affine_search.h"
#include "core/quant/blocks_beside.h"
#include "core/quant/scale_search.h"

namespace fathom::quant::FATHOM_ISA {

/// Blocks with y = d * level: the stored codes of the elements.
struct LevelBlocks {
  VI d;  ///< bits of the halves
  VI codes[kN];
};

/// The sums of the nearest levels to every x / scale, and the squared error at that scale, summed directly: exact where
/// the data is.
struct LevelSums {
  VT xv, vv, error;
  VT scale() const { return vv > splat<VT>(0) ? xv / vv : splat<VT>(0); }
};
template <typename Levels, typename Weights>
inline LevelSums pass_levels(const BlocksBeside& x, const Weights& w, VT scale) {
  const VT zero = splat<VT>(0), inverse = scale != zero ? 1.0f / scale : zero;
  LevelSums sums{zero, zero, zero};
  for (int i = 0; i < kN; ++i) {
    const VT v = Levels::nearest(x.at(i) * inverse), wv = w.at(i) * v, e = x.at(i) - scale * v;
    sums.xv += wv * x.at(i);
    sums.vv += wv * v;
    sums.error += w.at(i) * e * e;
  }
  return sums;
}

/// The scale that least squares takes for the best of kSteps trials at either end of the levels (TrialPlaces).
template <typename Levels, int kSteps, float kFrom, float kTo, typename Weights>
inline VT best_scale(const BlocksBeside& x, const Weights& w) {
  static constexpr TrialPlaces<Levels, kSteps, kFrom, kTo> kPlaces;
  const VT zero = splat<VT>(0), extreme = x.high() > -x.low() ? x.high() : x.low();
  const VT unit = extreme != zero ? 1.0f / extreme : zero;
  VT best_gain = zero, best = zero;
  for (int t = 0; t < kPlaces.kTrials; ++t) {
    const VT inverse = kPlaces.at[t] * unit;
    VT xv = zero, vv = zero;
    for (int i = 0; i < kN; ++i) {
      const VT v = Levels::nearest(x.at(i) * inverse), wv = w.at(i) * v;
      xv += wv * x.at(i);
      vv += wv * v;
    }
    const VT scale = vv > zero ? xv / vv : zero, gain = xv * scale;
    best = gain > best_gain ? scale : best;
    best_gain = most(gain, best_gain);
  }
  return best;
}

/// Chooses d and the codes. The best trial's scale is rounded to half, then the one that least squares takes for its
/// codes; the better of the two stays. Without trials (kSteps = 0) the largest magnitude goes to the end of the levels.
/// Trials include that choice, f = 1, so that values which already lie on a grid stay.
template <typename Levels, int kSteps, float kFrom, float kTo, typename Weights>
inline void encode_levels(const BlocksBeside& x, const Weights& w, LevelBlocks* out) {
  VT scale;
  if constexpr (kSteps > 0) {
    scale = best_scale<Levels, kSteps, kFrom, kTo>(x, w);
  } else {
    scale = most(x.high(), -x.low()) * (1 / Levels::kHighest);
  }
  HalfFactors d = x.to_half(scale);
  LevelSums best = pass_levels<Levels>(x, w, d.value);
  const HalfFactors next = x.to_half(best.scale());
  const LevelSums sums = pass_levels<Levels>(x, w, next.value);
  const auto is_better = sums.error < best.error;
  d.bits = is_better ? next.bits : d.bits;
  d.value = is_better ? next.value : d.value;
  if constexpr (!Levels::kHasZero) {  // even the smallest half may be too large a scale
    const auto is_worse = least(sums.error, best.error) > pass_levels<Levels>(x, w, splat<VT>(0)).error;
    d.bits = is_worse ? VI{} : d.bits;
    d.value = is_worse ? splat<VT>(0) : d.value;
  }
  out->d = d.bits;
  const VT zero = splat<VT>(0), inverse = d.value != zero ? 1.0f / d.value : zero;
  for (int i = 0; i < kN; ++i) out->codes[i] = Levels::codes(Levels::nearest(x.at(i) * inverse));
}

/// Blocks with y = d * q + m.
struct AffineBlocks {
  VI d, m;  ///< bits of the halves
  VI codes[kN];
};

/// The sums that no choice of q changes.
struct PlainSums {
  VT w, wx, wxx;
};

/// Chooses q for every pair; its sums in `pairs`.
template <int kTop, typename Weights>
inline void sum_affine(const BlocksBeside& x, const Weights& w, AffinePairs* pairs) {
  const VT zero = splat<VT>(0), inverse = pairs->scale != zero ? 1.0f / pairs->scale : zero;
  const VT shift = pairs->shift;
  VT wq = zero, wqq = zero, wxq = zero;
  for (int i = 0; i < kN; ++i) {
    const VT q = round_clamped((x.at(i) + shift) * inverse, 0, kTop), part = w.at(i) * q;
    wq += part;
    wqq += part * q;
    wxq += part * x.at(i);
  }
  pairs->wq = wq, pairs->wqq = wqq, pairs->wxq = wxq;
}

/// The squared error with q chosen for every pair, summed directly.
template <int kTop, typename Weights>
inline VT affine_error(const BlocksBeside& x, const Weights& w, VT scale, VT shift) {
  const VT zero = splat<VT>(0), inverse = scale != zero ? 1.0f / scale : zero;
  VT sum = zero;
  for (int i = 0; i < kN; ++i) {
    const VT q = round_clamped((x.at(i) + shift) * inverse, 0, kTop), e = x.at(i) - (scale * q - shift);
    sum += w.at(i) * e * e;
  }
  return sum;
}

/// Chooses d, m and the codes: the best of kTries * kTries ranges (TrialRanges), each moved to the optimum for its
/// codes, rounded to halves; then what least squares takes for the codes chosen anew; the better of the two stays.
/// Trials include the plain range.
template <int kTop, int kTries, float kClip, typename Weights>
inline void encode_affine(const BlocksBeside& x, const Weights& w, AffineBlocks* out) {
  static constexpr TrialRanges<kTop, kTries, kClip> kRanges;
  const VT zero = splat<VT>(0), width = x.high() - x.low();
  PlainSums plain{zero, zero, zero};
  for (int i = 0; i < kN; ++i) {
    const VT wx = w.at(i) * x.at(i);
    plain.w += w.at(i);
    plain.wx += wx;
    plain.wxx += wx * x.at(i);
  }
  AffinePairs best{zero, zero, zero, zero, zero};
  VT best_error = splat<VT>(__builtin_inff());
  for (int t = 0; t < kRanges.kTrials; ++t) {
    AffinePairs trial;
    trial.scale = width * kRanges.step[t];
    trial.shift = -x.low() - kRanges.cut_low[t] * trial.scale;
    sum_affine<kTop>(x, w, &trial);
    trial.solve(plain, Shift::kAny);
    const VT error = trial.error(plain);
    const auto is_better = error < best_error;
    best.scale = is_better ? trial.scale : best.scale;
    best.shift = is_better ? trial.shift : best.shift;
    best.wq = is_better ? trial.wq : best.wq;
    best_error = least(error, best_error);
  }
  // The rounding of d is made up for by m, that of m by the choice of q.
  const auto round_to_halves = [&](const AffinePairs& pair, HalfFactors* d, HalfFactors* m) {
    *d = x.to_half(pair.scale);
    *m = x.to_half(d->value != zero ? (plain.wx - d->value * pair.wq) / plain.w : -pair.shift);
  };
  HalfFactors d, m, next_d, next_m;
  round_to_halves(best, &d, &m);
  AffinePairs next{d.value, -m.value, zero, zero, zero};
  sum_affine<kTop>(x, w, &next);
  next.solve(plain, Shift::kAny);
  round_to_halves(next, &next_d, &next_m);
  const auto is_better =
      affine_error<kTop>(x, w, next_d.value, -next_m.value) < affine_error<kTop>(x, w, d.value, -m.value);
  out->d = is_better ? next_d.bits : d.bits;
  out->m = is_better ? next_m.bits : m.bits;
  const VT scale = is_better ? next_d.value : d.value, shift = is_better ? -next_m.value : -m.value;
  const VT inverse = scale != zero ? 1.0f / scale : zero;
  for (int i = 0; i < kN; ++i)
    out->codes[i] = __builtin_convertvector(round_clamped((x.at(i) + shift) * inverse, 0, kTop), VI);
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockQ4_0* out, int n) {
  LevelBlocks blocks;
  encode_levels<IntegerLevels<-8, 7>, 8, 0.75f, 1.1875f>(x, w, &blocks);
  const PackedCodes packed(blocks.codes);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    packed.store_nibbles(lane, out[lane].qs);
  }
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockQ5_0* out, int n) {
  LevelBlocks blocks;
  encode_levels<IntegerLevels<-16, 15>, 8, 0.875f, 1.09375f>(x, w, &blocks);
  const PackedCodes packed(blocks.codes);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    out[lane].qh = static_cast<uint32_t>(packed.fifths[lane]);
    packed.store_nibbles(lane, out[lane].qs);
  }
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockQ8_0* out, int n) {
  LevelBlocks blocks;
  encode_levels<IntegerLevels<-127, 127>, 0, 1.0f, 1.0f>(x, w, &blocks);
  VI words[8] = {};
  for (int i = 0; i < kN; ++i) words[i / 4] |= ((blocks.codes[i] - 127) & 255) << 8 * (i % 4);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    store_words(words, 8, lane, out[lane].qs);
  }
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockIQ4_NL* out, int n) {
  LevelBlocks blocks;
  encode_levels<IQ4Levels, 16, 0.71875f, 1.1875f>(x, w, &blocks);
  const PackedCodes packed(blocks.codes);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    packed.store_nibbles(lane, out[lane].qs);
  }
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockQ4_1* out, int n) {
  AffineBlocks blocks;
  encode_affine<15, 4, 1.0f>(x, w, &blocks);
  const PackedCodes packed(blocks.codes);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    out[lane].m = static_cast<uint16_t>(blocks.m[lane]);
    packed.store_nibbles(lane, out[lane].qs);
  }
}

template <typename Weights> inline void encode(const BlocksBeside& x, const Weights& w, BlockQ5_1* out, int n) {
  AffineBlocks blocks;
  encode_affine<31, 4, 1.0f>(x, w, &blocks);
  const PackedCodes packed(blocks.codes);
  for (int lane = 0; lane < n; ++lane) {
    out[lane].d = static_cast<uint16_t>(blocks.d[lane]);
    out[lane].m = static_cast<uint16_t>(blocks.m[lane]);
    out[lane].qh = static_cast<uint32_t>(packed.fifths[lane]);
    packed.store_nibbles(lane, out[lane].qs);
  }
}

}  // namespace fathom::quant::FATHOM_ISA
