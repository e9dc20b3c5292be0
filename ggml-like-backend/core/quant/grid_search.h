// Nearest grid point under weights, for the IQ2, IQ3 and IQ1 codebooks.
//
// A grid point is kDim levels, each one of kLevels. To find the point nearest to a target without looking at all of
// them: round every element of the target to its nearest level; that pattern names a short list of grid points near it,
// made once per grid; the listed points are then compared exactly. The cost of a point is the sum of two table entries,
// one per half, because a half has few patterns (3^4 or 8^2).
#pragma once

#include <cstdint>

namespace fathom::quant {

/// One grid, made for searching. Views memory that lives as long as the program.
template <int kGridDim, int kGridLevels> struct Grid {
  static constexpr int kDim = kGridDim, kLevels = kGridLevels;
  static constexpr int kHalfDim = kDim / 2;
  static constexpr int kHalf = kLevels == 3 ? 81 : 64;  ///< patterns of a half: kLevels^kHalfDim

  struct HalfCodes {
    uint8_t low, high;
  };
  float levels[kLevels];
  float thresholds[kLevels - 1];
  int neighbours;          ///< length of a list
  const float* values;     ///< [points][kDim]
  const HalfCodes* codes;  ///< [points]
  const uint16_t* lists;   ///< [kHalf * kHalf][neighbours]

  /// kDim levels of a point.
  const float* point(int index) const { return values + index * kDim; }
};

using Grid8 = Grid<8, 3>;
using Grid4 = Grid<4, 8>;

/// The grids, built on first use and kept.
const Grid8& iq2_xxs_search();
const Grid8& iq2_xs_search();
const Grid8& iq2_s_search();
const Grid4& iq3_xxs_search();
const Grid4& iq3_s_search();
const Grid8& iq1_search();

}  // namespace fathom::quant
