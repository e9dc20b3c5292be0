// Encoders of the ternary codebook formats IQ1_S and IQ1_M: y = scale * (grid + delta), delta = +1/8 or -1/8.
#pragma once

#include "core/quant/block_tools.h"
#include "core/quant/encode.h"
#include "core/quant/grid_block.h"
#include "core/quant/grid_nearest.h"

namespace fathom::quant::FATHOM_ISA {

/// A run of kPoints groups of 8. The delta belongs to the whole run (IQ1_S) or to each group (IQ1_M).
template <int kPoints, bool kDeltaPerPoint> struct TernaryRun {
  const float* x;
  const float* w;

  struct Choice {
    ScaleFit fit;
    int indices[kPoints];
    bool minus[kPoints];  ///< delta is -1/8
  };

  Choice choose(float scale) const {
    const Grid8& grid = iq1_search();
    GridChoice found[2][kPoints];
    float total[2] = {0, 0};
    for (int minus = 0; minus < 2; ++minus) {
      const float delta = minus != 0 ? -kIQ1Delta : kIQ1Delta;
      for (int p = 0; p < kPoints; ++p) {
        float t[8];
        for (int j = 0; j < 8; ++j) t[j] = x[8 * p + j] / scale - delta;
        found[minus][p] = nearest(grid, t, w + 8 * p);
        total[minus] += found[minus][p].cost;
      }
    }
    Choice choice;
    for (int p = 0; p < kPoints; ++p) {
      const bool minus = kDeltaPerPoint ? found[1][p].cost < found[0][p].cost : total[1] < total[0];
      choice.minus[p] = minus;
      choice.indices[p] = found[minus ? 1 : 0][p].index;
      const float* v = grid.point(choice.indices[p]);
      for (int j = 0; j < 8; ++j) {
        const float level = v[j] + (minus ? -kIQ1Delta : kIQ1Delta);
        const float wv = w[8 * p + j] * level;
        choice.fit.xv += wv * x[8 * p + j];
        choice.fit.vv += wv * level;
      }
    }
    return choice;
  }
};

// Three levels suit Gaussian values best when the outer ones lie at 1.22 deviations.
constexpr float kBell = 1.22f;

template <typename Run, int kRunElements> struct TernaryEncoder {
  static constexpr int kRuns = kSuperBlock / kRunElements;
  GridBlock<Run, kRuns, 7> block;

  void search(const float* x, const float* w, int steps) {
    float scaled[kSuperBlock];
    const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
    if (scale.is_zero()) return;
    Run runs[kRuns];
    float low[kRuns], high[kRuns];
    for (int b = 0; b < kRuns; ++b) {
      runs[b] = {scaled + b * kRunElements, w + b * kRunElements};
      scale_range(scaled + b * kRunElements, kRunElements, kBell, 1.0f, 1.0f, &low[b], &high[b]);
    }
    block.search(scale, runs, low, high, steps, 1.0f);
  }
};

inline void encode(const float* x, const float* w, BlockIQ1_S* out) {
  TernaryEncoder<TernaryRun<4, false>, 32> e;
  e.search(x, w, 10);
  __builtin_memset(out, 0, sizeof(*out));
  out->d = e.block.d.bits;
  for (int ib = 0; ib < 8; ++ib) {
    const auto& choice = e.block.choices[ib];
    unsigned qh = static_cast<unsigned>(e.block.k[ib]) << 12 | (choice.minus[0] ? 0x8000u : 0u);
    for (int l = 0; l < 4; ++l) {
      const auto index = static_cast<unsigned>(choice.indices[l]);
      out->qs[4 * ib + l] = static_cast<uint8_t>(index);
      qh |= (index >> 8) << (3 * l);
    }
    out->qh[ib] = static_cast<uint16_t>(qh);
  }
}

inline void encode(const float* x, const float* w, BlockIQ1_M* out) {
  TernaryEncoder<TernaryRun<2, true>, 16> e;
  e.search(x, w, 10);
  __builtin_memset(out, 0, sizeof(*out));
  for (int run = 0; run < 16; ++run) {
    const auto& choice = e.block.choices[run];
    unsigned qh = 0;
    for (int p = 0; p < 2; ++p) {
      const auto index = static_cast<unsigned>(choice.indices[p]);
      out->qs[2 * run + p] = static_cast<uint8_t>(index);
      qh |= (index >> 8 | (choice.minus[p] ? 8u : 0u)) << (4 * p);
    }
    out->qh[run] = static_cast<uint8_t>(qh);
    const unsigned word = out->scales[run / 4] | static_cast<unsigned>(e.block.k[run]) << (3 * (run % 4));
    out->scales[run / 4] = static_cast<uint16_t>(word);
  }
  for (int nibble = 0; nibble < 4; ++nibble) {
    const unsigned part = (static_cast<unsigned>(e.block.d.bits) >> (4 * nibble)) & 15u;
    out->scales[nibble] = static_cast<uint16_t>(out->scales[nibble] | part << 12);
  }
}

}  // namespace fathom::quant::FATHOM_ISA
