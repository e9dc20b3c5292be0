// Least-squares search for formats of the form y = scale * level: one scale for a run of elements, and one block factor
// for the small integer scales of many runs.
#pragma once

#include "core/quant/codebooks.h"
#include "core/quant/encode.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

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
template <int kLow, int kHigh> struct IntegerLevels {
  static constexpr float kLowest = kLow;
  static constexpr float kHighest = kHigh;
  static constexpr bool kHasZero = kLow <= 0 && kHigh >= 0;
  template <typename V> static V nearest(V t) { return round_clamped(t, kLow, kHigh); }
  /// Stored codes of eight levels, and of a vector of them.
  static void store_codes(uint8_t* codes, V8 levels) { store_bytes(codes, levels - splat8(kLow)); }
  static VI codes(VT levels) { return __builtin_convertvector(levels - splat<VT>(kLow), VI); }
};

/// The 16 levels of kIQ4Values.
struct IQ4Levels {
  static constexpr float kLowest = -127;
  static constexpr float kHighest = 113;
  static constexpr bool kHasZero = false;

  template <typename V> static V nearest(V t) {
    // Twice a midpoint between two of the levels is an integer, so the nearest level is a function of floor(2 t).
    constexpr float kOffset = IQ4Nearest::kOffset;
    const V u = least(most(t * splat<V>(2) + splat<V>(kOffset), splat<V>(0)), splat<V>(2 * kOffset - 1));
#ifdef __AVX512F__
    if constexpr (sizeof(V) == 64) return _mm512_i32gather_ps(_mm512_cvttps_epi32(u), kIQ4Nearest.level, 4);
#endif
#ifdef __AVX2__
    if constexpr (sizeof(V) == 32) return _mm256_i32gather_ps(kIQ4Nearest.level, _mm256_cvttps_epi32(u), 4);
#endif
    V v;
    for (unsigned j = 0; j < sizeof(V) / sizeof(float); ++j) v[j] = kIQ4Nearest.level[static_cast<int>(u[j])];
    return v;
  }
  static void store_codes(uint8_t* codes, V8 levels) {
    for (int j = 0; j < 8; ++j) codes[j] = kIQ4Nearest.code[static_cast<int>(2 * levels[j]) + IQ4Nearest::kOffset];
  }
  static VI codes(VT levels) {
    VI out;
    for (int j = 0; j < kTrialLanes; ++j)
      out[j] = kIQ4Nearest.code[static_cast<int>(2 * levels[j]) + IQ4Nearest::kOffset];
    return out;
  }
};

/// Chooses the nearest level for every x / scale.
template <typename Levels, int kCount> inline ScaleFit fit_levels(const float* x, const float* w, float inverse_scale) {
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

/// Where trials put the largest magnitude: at kSteps places around either end of the levels, from kFrom to kTo times
/// the end.
template <typename Levels, int kSteps, float kFrom, float kTo> struct TrialPlaces {
  static constexpr int kTrials = 2 * kSteps;
  alignas(64) float at[trial_room(kTrials)] = {};
  constexpr TrialPlaces() {
    for (int t = 0; t < trial_room(kTrials); ++t) {
      const int trial = t < kTrials ? t : kTrials - 1;
      const float f = kFrom + (kTo - kFrom) * static_cast<float>(trial / 2) / static_cast<float>(kSteps - 1);
      at[t] = f * (trial % 2 == 0 ? Levels::kLowest : Levels::kHighest);
    }
  }
};

/// The best of trial scales (of either sign) for a run.
template <typename Levels, int kCount, int kSteps, float kFrom, float kTo>
inline ScaleFit best_trial(const float* x, const float* w) {
  static constexpr TrialPlaces<Levels, kSteps, kFrom, kTo> kPlaces;
  constexpr int kTrials = kPlaces.kTrials;
  const float extreme = extreme_of(x, kCount);
  if (magnitude(extreme) < 1e-15f) return {};
  alignas(64) float xv[trial_room(kTrials)], vv[trial_room(kTrials)], gain[trial_room(kTrials)];
  const VT unit = splat<VT>(1 / extreme), zero = splat<VT>(0);
  for (int t = 0; t < kTrials; t += kTrialLanes) {
    const VT inverse = load<VT>(kPlaces.at + t) * unit;
    VT sum_xv = zero, sum_vv = zero;
    for (int i = 0; i < kCount; ++i) {
      const VT xi = splat<VT>(x[i]);
      const VT v = Levels::nearest(xi * inverse);
      const VT wv = splat<VT>(w[i]) * v;
      sum_xv += wv * xi;
      sum_vv += wv * v;
    }
    store(xv + t, sum_xv);
    store(vv + t, sum_vv);
    store(gain + t, sum_vv > zero ? sum_xv * sum_xv / sum_vv : zero);
  }
  const int t = place_of_largest(gain, kTrials);
  return {xv[t], vv[t]};
}

/// The best scale for a run: the best trial, and then least squares until they settle.
template <typename Levels, int kCount, int kSteps, float kFrom, float kTo>
inline ScaleFit search_scale(const float* x, const float* w) {
  ScaleFit best = best_trial<Levels, kCount, kSteps, kFrom, kTo>(x, w);
  for (int round = 0; round < 3 && best.scale() != 0; ++round) {
    const ScaleFit fit = fit_levels<Levels, kCount>(x, w, 1 / best.scale());
    if (!(fit.gain() > best.gain())) break;
    best = fit;
  }
  return best;
}

/// Writes the stored codes of kCount elements.
template <typename Levels, int kCount> inline void level_codes(const float* x, float scale, uint8_t* codes) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < kCount; i += 8) Levels::store_codes(codes + i, Levels::nearest(load8(x + i) * splat8(inverse)));
}

/// Nearest of kLow, kLow + kStep, ... kHigh.
template <int kLow, int kHigh, int kStep> inline int nearest_step(float k) {
  return kLow + kStep * static_cast<int>(round_clamped((k - kLow) * (1.0f / kStep), 0, (kHigh - kLow) / kStep));
}

/// The block factor d and integers k in [kLow, kHigh], stepping by kStep, so that d * k[b] come as near as possible, in
/// squared error of the elements, to the best scales of the runs. `fits` are the runs' parabolas. Returns d.
/// Candidates put the largest scale at kTries places from the far end of k inwards.
template <int kRuns, int kLow, int kHigh, int kStep, int kTries>
inline float search_block_factor(const ScaleFit* fits) {
  float scales[kRuns], extreme = 0;
  for (int b = 0; b < kRuns; ++b) {
    scales[b] = fits[b].scale();
    extreme = magnitude(scales[b]) > magnitude(extreme) ? scales[b] : extreme;
  }
  if (extreme == 0) return 0;
  alignas(64) float factor[trial_room(2 * kTries)], gain[trial_room(2 * kTries)];
  int n = 0;
  for (int i = 0; i < kTries; ++i) {
    // From a quarter step beyond the end inwards, half a step at a time.
    const float inwards = kStep * (0.5f * static_cast<float>(i) - 0.25f);
    const float ends[2] = {kLow + inwards, kHigh - inwards};
    for (const float end : ends) {
      if (magnitude(end) < 0.5f * kStep || (kLow >= 0 && end < 0.5f * kHigh)) continue;
      factor[n++] = extreme / end;
    }
  }
  for (int t = n; t < whole_lanes(n); ++t) factor[t] = factor[n - 1];
  float best_factor = 0, best_gain = 0;
  for (int round = 0; round < 2; ++round) {
    for (int t = 0; t < n; t += kTrialLanes) {
      const VT inverse = 1.0f / load<VT>(factor + t);
      VT kx = splat<VT>(0), kk = splat<VT>(0);
      for (int b = 0; b < kRuns; ++b) {
        const VT steps = (inverse * scales[b] - static_cast<float>(kLow)) * (1.0f / kStep);
        const VT k =
            round_clamped(steps, 0, (kHigh - kLow) / kStep) * static_cast<float>(kStep) + static_cast<float>(kLow);
        kx += k * fits[b].xv;
        kk += k * k * fits[b].vv;
      }
      const VT zero = splat<VT>(0);
      const auto is_good = (kk > zero) & (kx != zero);
      store(gain + t, is_good ? kx * kx / kk : zero);
      store(factor + t, is_good ? kx / kk : load<VT>(factor + t));
    }
    for (int t = 0; t < n; ++t) {
      if (gain[t] > best_gain) {
        best_gain = gain[t];
        best_factor = factor[t];
      }
    }
  }
  return best_factor;
}

/// y = d * k * level: kRuns runs of kCount elements, each with an integer scale k in [kLow, kHigh].
template <typename Levels, int kCount, int kLow, int kHigh> struct ScaledRuns {
  static constexpr int kRuns = kSuperBlock / kCount;
  HalfFactor d;
  int k[kRuns] = {};
  uint8_t codes[kSuperBlock];

  /// x in the units of `scale`. The parameters go to search_scale.
  template <int kSteps, float kFrom, float kTo> void search(const BlockScale& scale, const float* x, const float* w) {
    ScaleFit fits[kRuns];
    for (int b = 0; b < kRuns; ++b)
      fits[b] = search_scale<Levels, kCount, kSteps, kFrom, kTo>(x + b * kCount, w + b * kCount);
    float factor = search_block_factor < kRuns, kLow, kHigh, 1, kHigh >= 100 ? 4 : 16 > (fits);
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
    const int middle = nearest_step<kLow, kHigh, 1>(fit->scale() / d.value);
    ScaleFit best_fit;
    float best_gain = -1;
    for (int candidate = most_of(kLow, middle - 1); candidate <= least_of(kHigh, middle + 1); ++candidate) {
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

}  // namespace fathom::quant::FATHOM_ISA
