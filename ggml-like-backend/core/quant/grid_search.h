// Nearest grid point under weights, for the IQ2, IQ3 and IQ1 codebooks.
//
// A grid point is kDim levels, each one of kLevels. To find the point nearest to a target without looking at all of
// them: round every element of the target to its nearest level; that pattern names a short list of grid points near it,
// made once per grid; the listed points are then compared exactly. The cost of a point is the sum of two table entries,
// one per half, because a half has few patterns (3^4 or 8^2).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace fathom::quant {

template <int kDim, int kLevels>
class GridSearch {
 public:
  static constexpr int kHalfDim = kDim / 2;
  static constexpr int kHalf = kLevels == 3 ? 81 : 64;  ///< patterns of a half: kLevels^kHalfDim

  /// `points` are bytes of levels, as in codebooks.h; `neighbours` is the length of the lists.
  template <typename Word>
  GridSearch(const Word* points, int n_points, const std::array<float, kLevels>& levels, int neighbours);

  struct Choice {
    int index;
    float cost;  ///< sum w * (target - level)^2
  };

  /// target[kDim] in units of the levels, any sign; w[kDim] positive.
  Choice nearest(const float* target, const float* w) const;

  /// kDim levels of a point.
  const float* point(int index) const { return values_.data() + index * kDim; }

 private:
  struct HalfCodes {
    uint8_t low, high;
  };
  std::array<float, kLevels> levels_;
  std::array<float, kLevels - 1> thresholds_;
  int neighbours_;
  std::vector<float> values_;
  std::vector<HalfCodes> codes_;
  std::vector<uint16_t> lists_;  ///< [kHalf * kHalf][neighbours]
};

using Grid8 = GridSearch<8, 3>;
using Grid4 = GridSearch<4, 8>;

/// The grids, built on first use and kept.
const Grid8& iq2_xxs_search();
const Grid8& iq2_xs_search();
const Grid8& iq2_s_search();
const Grid4& iq3_xxs_search();
const Grid4& iq3_s_search();
const Grid8& iq1_search();

}  // namespace fathom::quant
