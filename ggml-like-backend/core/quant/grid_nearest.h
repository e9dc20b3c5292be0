// The point of a grid that is nearest under weights.
#pragma once

#include "core/quant/grid_search.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

/// cost[p] = sum over the half's elements of cell[j][digit j of p], digit 0 the fastest.
template <int kHalfDim, int kLevels, int kHalf> inline void half_costs(const float (*cell)[kLevels], float* cost) {
  constexpr int kPair = kLevels * kLevels;
  if constexpr (kHalfDim == 2) {
    for (int b = 0; b < kLevels; ++b) {
      for (int a = 0; a < kLevels; ++a) cost[a + kLevels * b] = cell[0][a] + cell[1][b];
    }
  } else {
    float low[kPair], high[kPair];
    half_costs<2, kLevels, kPair>(cell, low);
    half_costs<2, kLevels, kPair>(cell + 2, high);
    for (int b = 0; b < kPair; ++b) {
      for (int a = 0; a < kPair; ++a) cost[a + kPair * b] = low[a] + high[b];
    }
  }
}

struct GridChoice {
  int index;
  float cost;  ///< sum w * (target - level)^2
};

/// target[kDim] in units of the levels, any sign; w[kDim] positive.
template <typename G> inline GridChoice nearest(const G& grid, const float* target, const float* w) {
  constexpr int kDim = G::kDim, kLevels = G::kLevels, kHalfDim = G::kHalfDim, kHalf = G::kHalf;
  float cell[kDim][kLevels];
  int pattern = 0;
  for (int j = kDim - 1; j >= 0; --j) {
    int level = 0;
    for (int l = 0; l < kLevels; ++l) {
      const float e = target[j] - grid.levels[l];
      cell[j][l] = w[j] * e * e;
      if (l + 1 < kLevels) level += target[j] > grid.thresholds[l] ? 1 : 0;
    }
    pattern = pattern * kLevels + level;
  }
  float low[kHalf], high[kHalf];
  half_costs<kHalfDim, kLevels, kHalf>(cell, low);
  half_costs<kHalfDim, kLevels, kHalf>(cell + kHalfDim, high);
  const uint16_t* list = grid.lists + static_cast<int64_t>(pattern) * grid.neighbours;
  GridChoice best{0, 0};
  for (int i = 0; i < grid.neighbours; ++i) {
    const typename G::HalfCodes c = grid.codes[list[i]];
    const float cost = low[c.low] + high[c.high];
    if (i == 0 || cost < best.cost) best = {list[i], cost};
  }
  return best;
}

}  // namespace fathom::quant::FATHOM_ISA
