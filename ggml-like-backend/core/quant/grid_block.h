// Scales of a codebook block: one small odd integer per run of grid points, one half-precision unit for all.
//
// A Run offers Choice choose(float scale): the grid points nearest to its elements at that scale, and in Choice::fit
// the sums that tell which scale would suit those points best.
#pragma once

#include "core/quant/encode.h"
#include "core/quant/scale_search.h"

namespace fathom::quant::FATHOM_ISA {

/// The best scale of a run, between `low` and `high`, in `steps` geometric steps, settled by least squares.
template <typename Run> inline ScaleFit search_run(const Run& run, float low, float high, int steps) {
  ScaleFit best;
  const float ratio = __builtin_powf(high / low, 1 / static_cast<float>(steps - 1));
  float s = low;
  for (int i = 0; i < steps; ++i, s *= ratio) {
    const ScaleFit fit = run.choose(s).fit;
    if (fit.xv > 0 && fit.gain() > best.gain()) best = fit;
  }
  for (int round = 0; round < 2 && best.scale() > 0; ++round) {
    const ScaleFit fit = run.choose(best.scale()).fit;
    if (!(fit.xv > 0 && fit.gain() > best.gain())) break;
    best = fit;
  }
  return best;
}

/// A block of kRuns runs whose scales are unit * (2k + 1), k in 0..kTop. Finds unit (a half times `unit_of_d`), the ks
/// and the points.
template <typename Run, int kRuns, int kTop> struct GridBlock {
  HalfFactor d;
  int k[kRuns] = {};
  typename Run::Choice choices[kRuns] = {};

  /// low[b], high[b]: where to look for the scale of run b; both zero for a run of zeros.
  void search(const BlockScale& scale, const Run* runs, const float* low, const float* high, int steps,
              float unit_of_d) {
    ScaleFit fits[kRuns];
    for (int b = 0; b < kRuns; ++b) {
      if (high[b] > 0) fits[b] = search_run(runs[b], low[b], high[b], steps);
    }
    float unit = search_block_factor<kRuns, 1, 2 * kTop + 1, 2, 12>(fits);
    for (int round = 0; round < 2; ++round) {
      d = scale.to_half(unit / unit_of_d);
      const float stored_unit = d.value * unit_of_d;
      if (stored_unit == 0) return;
      float kx = 0, kk = 0, gain = 0;
      for (int b = 0; b < kRuns; ++b) {
        const float odd = settle(runs[b], stored_unit, &fits[b], &k[b], &choices[b]);
        kx += odd * fits[b].xv;
        kk += odd * odd * fits[b].vv;
        gain += fits[b].gain_at(stored_unit * odd);
      }
      if (gain <= 0) {  // the smallest half is still too large: zeros are nearer
        d = {};
        return;
      }
      if (kk > 0 && kx > 0) unit = kx / kk;
    }
  }

 private:
  /// The best k near the run's optimum, with its points; returns 2k + 1.
  static float settle(const Run& run, float unit, ScaleFit* fit, int* k, typename Run::Choice* best) {
    const int middle = nearest_step<1, 2 * kTop + 1, 2>(fit->scale() / unit);
    float best_gain = -__builtin_inff();
    for (int odd = most_of(1, middle - 2); odd <= least_of(2 * kTop + 1, middle + 2); odd += 2) {
      const float s = unit * static_cast<float>(odd);
      const auto choice = run.choose(s);
      const float gain = choice.fit.gain_at(s);
      if (gain > best_gain) {
        best_gain = gain;
        *best = choice;
        *k = odd / 2;
      }
    }
    *fit = best->fit;
    return static_cast<float>(2 * *k + 1);
  }
};

/// Where the scale of a run of n elements may lie: from the one that suits a bell-shaped run (rms times `bell`), less a
/// third, to the one that reaches the largest magnitude, `top` levels high. Where all magnitudes are about alike, up to
/// the one that puts them on the lowest level, `bottom`: few grid points are equal throughout, but those at the bottom
/// are.
inline void scale_range(const float* x, int n, float bell, float bottom, float top, float* low, float* high) {
  float sum = 0, largest = 0;
  for (int i = 0; i < n; ++i) {
    sum += x[i] * x[i];
    largest = most_of(largest, magnitude(x[i]));
  }
  const float rms = __builtin_sqrtf(sum / static_cast<float>(n));
  *low = 0.65f * bell * rms;
  *high = rms > 1e-12f ? most_of(1.05f * largest / top, 1.2f * bell * rms) : 0;
  if (largest < 1.3f * rms) *high = most_of(*high, 1.05f * rms / bottom);
}

}  // namespace fathom::quant::FATHOM_ISA
