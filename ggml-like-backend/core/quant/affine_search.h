// Least-squares search for formats of the form y = scale * q - shift, q in 0..kTop.
#pragma once

#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

/// Sums over a run for chosen q, enough to know the squared error of any (scale, shift).
struct AffineFit {
  float scale = 0, shift = 0;  ///< the best pair for this q
  float w = 0, wx = 0, wxx = 0, wq = 0, wqq = 0, wxq = 0;

  float error_at(float s, float m) const { return wxx + s * (s * wqq - 2 * wxq) + m * (2 * (wx - s * wq) + m * w); }
};

/// What the shift may be.
enum class Shift { kAny, kNotNegative };

/// The sums that no choice of q changes.
template <int kCount> inline AffineFit plain_sums(const float* x, const float* w) {
  V8 sw = splat8(0), sx = splat8(0), sxx = splat8(0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i), wi = load8(w + i), wx = wi * xi;
    sw += wi;
    sx += wx;
    sxx += wx * xi;
  }
  AffineFit fit;
  fit.w = sum8(sw), fit.wx = sum8(sx), fit.wxx = sum8(sxx);
  return fit;
}

/// q chosen for this scale and shift. `fit` has the plain sums.
template <int kTop, int kCount>
inline void fit_affine(const float* x, const float* w, float scale, float shift, AffineFit* fit) {
  V8 sq = splat8(0), sqq = splat8(0), sxq = splat8(0);
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i);
    const V8 q = round_clamped((xi + splat8(shift)) * inverse, 0, kTop);
    const V8 wq = load8(w + i) * q;
    sq += wq;
    sqq += wq * q;
    sxq += wq * xi;
  }
  fit->scale = scale, fit->shift = shift;
  fit->wq = sum8(sq), fit->wqq = sum8(sqq), fit->wxq = sum8(sxq);
}

/// Trial pairs and the sums of their q.
template <int kTrials> struct AffineTrials {
  alignas(64) float scale[trial_room(kTrials)], shift[trial_room(kTrials)];
  alignas(64) float wq[trial_room(kTrials)], wqq[trial_room(kTrials)], wxq[trial_room(kTrials)];
  alignas(64) float error[trial_room(kTrials)];

  template <int kTop, int kCount> void sum(const float* x, const float* w) {
    for (int t = kTrials; t < whole_lanes(kTrials); ++t) scale[t] = scale[kTrials - 1], shift[t] = shift[kTrials - 1];
    for (int t = 0; t < kTrials; t += kTrialLanes) {
      const VT s = load<VT>(scale + t), m = load<VT>(shift + t);
      const VT inverse = s != splat<VT>(0) ? splat<VT>(1) / s : splat<VT>(0);
      VT sq = splat<VT>(0), sqq = splat<VT>(0), sxq = splat<VT>(0);
      for (int i = 0; i < kCount; ++i) {
        const VT xi = splat<VT>(x[i]);
        const VT q = round_clamped((xi + m) * inverse, 0, kTop);
        const VT part = splat<VT>(w[i]) * q;
        sq += part;
        sqq += part * q;
        sxq += part * xi;
      }
      store(wq + t, sq);
      store(wqq + t, sqq);
      store(wxq + t, sxq);
    }
  }

  /// The errors at the pairs themselves. `plain` has the plain sums.
  void judge(const AffineFit& plain) {
    for (int t = 0; t < kTrials; t += kTrialLanes) {
      const VT s = load<VT>(scale + t), m = load<VT>(shift + t), q = load<VT>(wq + t), qq = load<VT>(wqq + t),
               xq = load<VT>(wxq + t);
      store(error + t, plain.wxx + s * (s * qq - 2.0f * xq) + m * (2.0f * (plain.wx - s * q) + m * plain.w));
    }
  }

  /// Moves every pair to the optimum for its q; where that would need a negative scale or a forbidden shift, to the
  /// nearest allowed pair.
  void solve(const AffineFit& plain, Shift allowed) {
    const VT zero = splat<VT>(0);
    const float w = plain.w, wx = plain.wx;
    for (int t = 0; t < kTrials; t += kTrialLanes) {
      const VT q = load<VT>(wq + t), qq = load<VT>(wqq + t), xq = load<VT>(wxq + t);
      const VT det = qq * w - q * q;
      const auto is_regular = det > 1e-6f * qq * w;
      const VT s = is_regular ? (xq * w - wx * q) / det : load<VT>(scale + t);
      const VT m = (s * q - wx) / w;
      // All q alike: the shift alone.
      auto is_good = is_regular ? s > zero : (allowed == Shift::kAny || wx <= 0 ? zero == zero : zero != zero);
      if (allowed == Shift::kNotNegative) is_good = is_good & (m >= zero);
      const VT through_zero = qq > zero ? most(zero, xq / qq) : zero;
      store(scale + t, is_good ? s : through_zero);
      store(shift + t, is_good ? m : zero);
    }
  }

  int best() const {
    int b = 0;
    for (int t = 1; t < kTrials; ++t) b = error[t] < error[b] ? t : b;
    return b;
  }

  AffineFit fit(int t, AffineFit plain) const {
    plain.scale = scale[t], plain.shift = shift[t], plain.wq = wq[t], plain.wqq = wqq[t], plain.wxq = wxq[t];
    return plain;
  }
};

/// Moves fit's scale and shift to the optimum for its q, as AffineTrials::solve does.
inline void solve(AffineFit* fit, Shift allowed) {
  const float det = fit->wqq * fit->w - fit->wq * fit->wq;
  if (det > 1e-6f * fit->wqq * fit->w) {
    fit->scale = (fit->wxq * fit->w - fit->wx * fit->wq) / det;
    fit->shift = (fit->scale * fit->wq - fit->wx) / fit->w;
    if (fit->scale > 0 && (allowed == Shift::kAny || fit->shift >= 0)) return;
  } else if (allowed == Shift::kAny || fit->wx <= 0) {  // all q alike: the shift alone
    fit->shift = (fit->scale * fit->wq - fit->wx) / fit->w;
    if (allowed == Shift::kAny || fit->shift >= 0) return;
  }
  fit->shift = 0;
  fit->scale = fit->wqq > 0 ? most_of(0.0f, fit->wxq / fit->wqq) : 0;
}

/// The best scale and shift found for a run: ranges that clip up to `clip` steps at either end, each settled by least
/// squares, the best of them once more with its own rounding.
template <int kTop, int kCount, int kTries>
inline AffineFit search_affine(const float* x, const float* w, Shift allowed, float clip) {
  V8 lows = load8(x), highs = lows;
  for (int i = 8; i < kCount; i += 8) {
    lows = least(lows, load8(x + i));
    highs = most(highs, load8(x + i));
  }
  float low = lows[0], high = highs[0];
  for (int j = 1; j < 8; ++j) low = least_of(low, lows[j]), high = most_of(high, highs[j]);
  if (allowed == Shift::kNotNegative) low = least_of(low, 0.0f);
  const float plain_scale = (high - low) / kTop;
  const AffineFit plain = plain_sums<kCount>(x, w);
  if (plain_scale < 1e-15f) {
    AffineFit fit = plain;
    fit_affine<kTop, kCount>(x, w, most_of(plain_scale, 0.0f), -low, &fit);
    solve(&fit, allowed);
    return fit;
  }
  AffineTrials<kTries * kTries> trials;
  for (int i = 0; i < kTries; ++i) {
    for (int j = 0; j < kTries; ++j) {
      // Clipped steps at the low and the high end; negative ones widen the range.
      const float cut_low = (clip + 0.5f) * static_cast<float>(i) / (kTries - 1) - 0.5f;
      const float cut_high = (clip + 0.5f) * static_cast<float>(j) / (kTries - 1) - 0.5f;
      trials.scale[i * kTries + j] = (high - low) / (kTop + cut_low + cut_high);
      trials.shift[i * kTries + j] = -low - cut_low * trials.scale[i * kTries + j];
    }
  }
  trials.template sum<kTop, kCount>(x, w);
  trials.solve(plain, allowed);
  trials.judge(plain);
  AffineFit best = plain;
  fit_affine<kTop, kCount>(x, w, plain_scale, -low, &best);
  float best_error = best.error_at(best.scale, best.shift);
  const int t = trials.best();
  if (trials.error[t] < best_error) {
    best_error = trials.error[t];
    best = trials.fit(t, plain);
  }
  for (int round = 0; round < 3 && best.scale > 0; ++round) {
    AffineFit fit = plain;
    fit_affine<kTop, kCount>(x, w, best.scale, best.shift, &fit);
    solve(&fit, allowed);
    const float error = fit.error_at(fit.scale, fit.shift);
    if (!(error < best_error)) break;
    best_error = error;
    best = fit;
  }
  return best;
}

/// Squared error summed directly, with q chosen for this scale and shift.
template <int kTop, int kCount> inline float affine_error(const float* x, const float* w, float scale, float shift) {
  V8 sum = splat8(0);
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i);
    const V8 q = round_clamped((xi + splat8(shift)) * inverse, 0, kTop);
    const V8 e = xi - (splat8(scale) * q - splat8(shift));
    sum += load8(w + i) * e * e;
  }
  return sum8(sum);
}

template <int kTop, int kCount> inline void affine_codes(const float* x, float scale, float shift, uint8_t* codes) {
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 q = round_clamped((load8(x + i) + splat8(shift)) * inverse, 0, kTop);
    store_bytes(codes + i, q);
  }
}

}  // namespace fathom::quant::FATHOM_ISA
