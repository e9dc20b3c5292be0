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

/// Pairs in lanes and the sums of their q. Of `Plain`, the plain sums, each lane may have its own (VT) or all the same.
struct AffinePairs {
  VT scale, shift, wq, wqq, wxq;

  /// The squared errors at the pairs themselves.
  template <typename Plain> VT error(const Plain& plain) const {
    return plain.wxx + scale * (scale * wqq - 2.0f * wxq) + shift * (2.0f * (plain.wx - scale * wq) + shift * plain.w);
  }

  /// Moves every pair to the optimum for its q. Where that would need a negative scale or a forbidden shift, a pair of
  /// any shift stays, and others go to the nearest allowed pair.
  template <typename Plain> void solve(const Plain& plain, Shift allowed) {
    const VT zero = splat<VT>(0), wx = zero + plain.wx;
    const VT det = wqq * plain.w - wq * wq;
    const auto is_regular = det > 1e-6f * wqq * plain.w;
    const VT s = is_regular ? (wxq * plain.w - wx * wq) / det : scale;
    const VT m = (s * wq - wx) * (1 / plain.w);
    // All q alike: the shift alone.
    auto is_good = is_regular ? s > zero : (allowed == Shift::kAny ? zero == zero : wx <= zero);
    if (allowed == Shift::kNotNegative) is_good = is_good & (m >= zero);
    if (allowed == Shift::kAny) {
      scale = is_good ? s : scale;
      shift = is_good ? m : shift;
      return;
    }
    const VT through_zero = wqq > zero ? most(zero, wxq / wqq) : zero;
    scale = is_good ? s : through_zero;
    shift = is_good ? m : zero;
  }
};

/// Trial pairs of one run and the sums of their q.
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
    for (int t = 0; t < kTrials; t += kTrialLanes) store(error + t, pairs(t).error(plain));
  }

  /// Moves every pair to the optimum for its q.
  void solve(const AffineFit& plain, Shift allowed) {
    for (int t = 0; t < kTrials; t += kTrialLanes) {
      AffinePairs moved = pairs(t);
      moved.solve(plain, allowed);
      store(scale + t, moved.scale);
      store(shift + t, moved.shift);
    }
  }

  int best() const {
    static_assert(kTrials <= 64);
    return place_of_least(error, kTrials);
  }

  AffineFit fit(int t, AffineFit plain) const {
    plain.scale = scale[t], plain.shift = shift[t], plain.wq = wq[t], plain.wqq = wqq[t], plain.wxq = wxq[t];
    return plain;
  }

 private:
  AffinePairs pairs(int t) const {
    return {load<VT>(scale + t), load<VT>(shift + t), load<VT>(wq + t), load<VT>(wqq + t), load<VT>(wxq + t)};
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

/// Ranges that clip from half a step less than none to kClip steps at either end, kTries for each.
template <int kTop, int kTries, float kClip> struct TrialRanges {
  static constexpr int kTrials = kTries * kTries;
  alignas(64) float step[trial_room(kTrials)] = {};     ///< in units of the run's width
  alignas(64) float cut_low[trial_room(kTrials)] = {};  ///< steps clipped at the low end
  constexpr TrialRanges() {
    for (int t = 0; t < trial_room(kTrials); ++t) {
      const int trial = t < kTrials ? t : kTrials - 1;
      cut_low[t] = cut(trial / kTries);
      step[t] = 1 / (kTop + cut_low[t] + cut(trial % kTries));
    }
  }
  static constexpr float cut(int i) { return (kClip + 0.5f) * static_cast<float>(i) / (kTries - 1) - 0.5f; }
};

/// The best of kTries * kTries ranges for a run, each moved to the optimum for its codes. `range` is the run's, `plain`
/// its plain sums.
template <int kTop, int kCount, int kTries, float kClip>
inline AffineFit best_affine_trial(const float* x, const float* w, Range range, const AffineFit& plain, Shift allowed) {
  static constexpr TrialRanges<kTop, kTries, kClip> kRanges;
  AffineTrials<kRanges.kTrials> trials;
  const VT width = splat<VT>(range.high - range.low), low = splat<VT>(range.low);
  for (int t = 0; t < kRanges.kTrials; t += kTrialLanes) {
    const VT scale = width * load<VT>(kRanges.step + t);
    store(trials.scale + t, scale);
    store(trials.shift + t, -low - load<VT>(kRanges.cut_low + t) * scale);
  }
  trials.template sum<kTop, kCount>(x, w);
  trials.solve(plain, allowed);
  trials.judge(plain);
  return trials.fit(trials.best(), plain);
}

/// The best scale and shift found for a run: the best trial or, if better, the plain range, and then least squares with
/// codes chosen anew until they settle.
template <int kTop, int kCount, int kTries, float kClip>
inline AffineFit search_affine(const float* x, const float* w, Shift allowed) {
  Range range = range_of(x, kCount);
  if (allowed == Shift::kNotNegative) range.low = least_of(range.low, 0.0f);
  const float plain_scale = (range.high - range.low) / kTop;
  const AffineFit plain = plain_sums<kCount>(x, w);
  AffineFit best = plain;
  fit_affine<kTop, kCount>(x, w, most_of(plain_scale, 0.0f), -range.low, &best);
  if (plain_scale < 1e-15f) {
    solve(&best, allowed);
    return best;
  }
  float best_error = best.error_at(best.scale, best.shift);
  const AffineFit trial = best_affine_trial<kTop, kCount, kTries, kClip>(x, w, range, plain, allowed);
  const float trial_error = trial.error_at(trial.scale, trial.shift);
  if (trial_error < best_error) {
    best_error = trial_error;
    best = trial;
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

template <int kTop, int kCount> inline void affine_codes(const float* x, float scale, float shift, uint8_t* codes) {
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 q = round_clamped((load8(x + i) + splat8(shift)) * inverse, 0, kTop);
    store_bytes(codes + i, q);
  }
}

}  // namespace fathom::quant::FATHOM_ISA
