// Least-squares search for formats of the form y = scale * q - shift, q in 0..kTop.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/quant/vector8.h"

namespace fathom::quant {

/// Sums over a run for chosen q, enough to know the squared error of any (scale, shift).
struct AffineFit {
  float scale = 0, shift = 0;  ///< the best pair for this q
  float w = 0, wx = 0, wxx = 0, wq = 0, wqq = 0, wxq = 0;

  float error_at(float s, float m) const { return wxx + s * (s * wqq - 2 * wxq) + m * (2 * (wx - s * wq) + m * w); }
};

/// What the shift may be.
enum class Shift { kAny, kNotNegative };

template <int kTop, int kCount>
inline AffineFit fit_affine(const float* x, const float* w, float scale, float shift) {
  V8 sw = splat8(0), sx = splat8(0), sxx = splat8(0), sq = splat8(0), sqq = splat8(0), sxq = splat8(0);
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i), wi = load8(w + i);
    const V8 q = round_clamped8((xi + splat8(shift)) * inverse, 0, kTop);
    const V8 wx = wi * xi, wq = wi * q;
    sw += wi;
    sx += wx;
    sxx += wx * xi;
    sq += wq;
    sqq += wq * q;
    sxq += wx * q;
  }
  return {scale, shift, sum8(sw), sum8(sx), sum8(sxx), sum8(sq), sum8(sqq), sum8(sxq)};
}

/// Moves fit's scale and shift to the optimum for its q. Where that would need a negative scale or a forbidden shift,
/// the nearest allowed pair.
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
  fit->scale = fit->wqq > 0 ? std::max(0.0f, fit->wxq / fit->wqq) : 0;
}

/// The best scale and shift found for a run: ranges that clip up to `clip` steps at either end, each settled by least
/// squares, the best of them once more with its own rounding.
template <int kTop, int kCount>
inline AffineFit search_affine(const float* x, const float* w, Shift allowed, int tries, float clip) {
  float low = x[0], high = x[0];
  for (int i = 1; i < kCount; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (allowed == Shift::kNotNegative) low = std::min(low, 0.0f);
  const float plain = (high - low) / kTop;
  AffineFit best = fit_affine<kTop, kCount>(x, w, std::max(plain, 0.0f), -low);
  if (plain < 1e-15f) {
    solve(&best, allowed);
    return best;
  }
  float best_error = best.error_at(best.scale, best.shift);
  auto consider = [&](float scale, float shift) {
    AffineFit fit = fit_affine<kTop, kCount>(x, w, scale, shift);
    solve(&fit, allowed);
    const float error = fit.error_at(fit.scale, fit.shift);
    if (error < best_error) {
      best_error = error;
      best = fit;
      return true;
    }
    return false;
  };
  for (int i = 0; i < tries; ++i) {
    for (int j = 0; j < tries; ++j) {
      // Clipped steps at the low and the high end; negative ones widen the range.
      const float cut_low = (clip + 0.5f) * static_cast<float>(i) / static_cast<float>(tries - 1) - 0.5f;
      const float cut_high = (clip + 0.5f) * static_cast<float>(j) / static_cast<float>(tries - 1) - 0.5f;
      const float scale = (high - low) / (static_cast<float>(kTop) + cut_low + cut_high);
      consider(scale, -low - cut_low * scale);
    }
  }
  for (int round = 0; round < 3 && best.scale > 0; ++round) {
    if (!consider(best.scale, best.shift)) break;
  }
  return best;
}

/// Squared error summed directly, with q chosen for this scale and shift.
template <int kTop, int kCount>
inline float affine_error(const float* x, const float* w, float scale, float shift) {
  V8 sum = splat8(0);
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i);
    const V8 q = round_clamped8((xi + splat8(shift)) * inverse, 0, kTop);
    const V8 e = xi - (splat8(scale) * q - splat8(shift));
    sum += load8(w + i) * e * e;
  }
  return sum8(sum);
}

template <int kTop, int kCount>
inline void affine_codes(const float* x, float scale, float shift, uint8_t* codes) {
  const V8 inverse = splat8(scale != 0 ? 1 / scale : 0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 q = round_clamped8((load8(x + i) + splat8(shift)) * inverse, 0, kTop);
    for (int j = 0; j < 8; ++j) codes[i + j] = static_cast<uint8_t>(q[j]);
  }
}

}  // namespace fathom::quant
