// Least-squares search for formats of the form y = scale * level: one scale for a run of elements, and one block factor
// for the small integer scales of many runs.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/quant/blocks.h"
#include "core/quant/encode.h"
#include "core/quant/vector8.h"

namespace fathom::quant {

/// Sums over a run of elements for chosen levels v: with them the squared error is a parabola in the scale,
/// error(s) = const - 2 s xv + s^2 vv, lowest at s = xv / vv, where it has fallen by xv^2 / vv.
struct ScaleFit {
  float xv = 0;  ///< sum w * x * v
  float vv = 0;  ///< sum w * v * v
  float scale() const { return vv > 0 ? xv / vv : 0; }
  float gain() const { return vv > 0 ? xv * xv / vv : 0; }
  float gain_at(float s) const { return s * (2 * xv - s * vv); }
};

/// Levels kLow, kLow + 1 ... kHigh.
template <int kLow, int kHigh>
struct IntegerLevels {
  static constexpr float kLowest = kLow;
  static constexpr float kHighest = kHigh;
  static V8 nearest(V8 t) { return round_clamped8(t, kLow, kHigh); }
  /// Stored code of a level.
  static int code(float level) { return static_cast<int>(level) - kLow; }
};

/// The 16 levels of kIQ4Values.
struct IQ4Levels {
  static constexpr float kLowest = -127;
  static constexpr float kHighest = 113;
  static V8 nearest(V8 t);
  static int code(float level);
};

/// Chooses the nearest level for every x / scale.
template <typename Levels, int kCount>
inline ScaleFit fit_levels(const float* x, const float* w, float inverse_scale) {
  V8 xv = splat8(0), vv = splat8(0);
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i);
    const V8 v = Levels::nearest(xi * splat8(inverse_scale));
    const V8 wv = load8(w + i) * v;
    xv += wv * xi;
    vv += wv * v;
  }
  return {sum8(xv), sum8(vv)};
}

/// The best scale (of either sign) for a run. Tries scales that put the largest magnitude at `steps` places around
/// either end of the levels, from `from` to `to` times the end, then lets least squares settle.
template <typename Levels, int kCount>
inline ScaleFit search_scale(const float* x, const float* w, float from, float to, int steps) {
  float extreme = 0;
  for (int i = 0; i < kCount; ++i) extreme = std::abs(x[i]) > std::abs(extreme) ? x[i] : extreme;
  ScaleFit best;
  if (std::abs(extreme) < 1e-15f) return best;
  for (int step = 0; step < steps; ++step) {
    const float f = steps == 1 ? to : from + (to - from) * static_cast<float>(step) / static_cast<float>(steps - 1);
    for (const float end : {Levels::kLowest, Levels::kHighest}) {
      const ScaleFit fit = fit_levels<Levels, kCount>(x, w, f * end / extreme);
      if (fit.gain() > best.gain()) best = fit;
    }
  }
  for (int round = 0; round < 3 && best.scale() != 0; ++round) {
    const ScaleFit fit = fit_levels<Levels, kCount>(x, w, 1 / best.scale());
    if (!(fit.gain() > best.gain())) break;
    best = fit;
  }
  return best;
}

/// Weighted squared error of kCount elements at their nearest levels, summed directly: exact where the data is.
template <typename Levels, int kCount>
inline float level_error(const float* x, const float* w, float scale) {
  V8 sum = splat8(0);
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < kCount; i += 8) {
    const V8 xi = load8(x + i);
    const V8 e = xi - splat8(scale) * Levels::nearest(xi * splat8(inverse));
    sum += load8(w + i) * e * e;
  }
  return sum8(sum);
}

/// Writes the stored codes of kCount elements.
template <typename Levels, int kCount>
inline void level_codes(const float* x, float scale, uint8_t* codes) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < kCount; i += 8) {
    const V8 v = Levels::nearest(load8(x + i) * splat8(inverse));
    for (int j = 0; j < 8; ++j) codes[i + j] = static_cast<uint8_t>(Levels::code(v[j]));
  }
}

/// The block factor d and integers k in [low, high], stepping by `step`, so that d * k[b] come as near as possible, in
/// squared error of the elements, to the best scales of the runs. `fits` are the runs' parabolas. Returns d.
/// Candidates put the largest scale at `tries` places from the far end of k inwards.
float search_block_factor(const ScaleFit* fits, int runs, int low, int high, int step, int tries);

/// Nearest of low, low + step, ... high.
inline int nearest_step(float k, int low, int high, int step) {
  const float steps = (k - static_cast<float>(low)) / static_cast<float>(step);
  const float top = static_cast<float>((high - low) / step);
  return low + step * static_cast<int>(std::lround(std::clamp(steps, 0.0f, top)));
}

/// y = d * k * level: kRuns runs of kCount elements, each with an integer scale k in [kLow, kHigh].
template <typename Levels, int kCount, int kLow, int kHigh>
struct ScaledRuns {
  static constexpr int kRuns = kSuperBlock / kCount;
  HalfFactor d;
  int k[kRuns] = {};
  uint8_t codes[kSuperBlock];

  /// x in the units of `scale`. The three numbers go to search_scale.
  void search(const BlockScale& scale, const float* x, const float* w, float from, float to, int steps) {
    ScaleFit fits[kRuns];
    for (int b = 0; b < kRuns; ++b)
      fits[b] = search_scale<Levels, kCount>(x + b * kCount, w + b * kCount, from, to, steps);
    float factor = search_block_factor(fits, kRuns, kLow, kHigh, 1, kHigh > 100 ? 4 : 16);
    // With d fixed, each run takes the best integer near its own optimum; then d follows, and once more.
    for (int round = 0; round < 3; ++round) {
      d = scale.to_half(factor);
      float kx = 0, kk = 0;
      for (int b = 0; b < kRuns; ++b) {
        settle(x + b * kCount, w + b * kCount, &fits[b], &k[b]);
        kx += static_cast<float>(k[b]) * fits[b].xv;
        kk += static_cast<float>(k[b] * k[b]) * fits[b].vv;
      }
      if (kk > 0) factor = kx / kk;
    }
    for (int b = 0; b < kRuns; ++b) {
      level_codes<Levels, kCount>(x + b * kCount, d.value * static_cast<float>(k[b]), codes + b * kCount);
    }
  }

 private:
  void settle(const float* x, const float* w, ScaleFit* fit, int* chosen) const {
    if (d.value == 0) {
      *chosen = 0;
      return;
    }
    const int middle = nearest_step(fit->scale() / d.value, kLow, kHigh, 1);
    ScaleFit best_fit;
    float best_gain = -1;
    for (int candidate = std::max(kLow, middle - 1); candidate <= std::min(kHigh, middle + 1); ++candidate) {
      const float s = d.value * static_cast<float>(candidate);
      const ScaleFit f = candidate != 0 ? fit_levels<Levels, kCount>(x, w, 1 / s) : ScaleFit{};
      const float gain = f.gain_at(s);
      if (gain > best_gain) {
        best_gain = gain;
        best_fit = f;
        *chosen = candidate;
      }
    }
    *fit = best_fit;
  }
};

}  // namespace fathom::quant
