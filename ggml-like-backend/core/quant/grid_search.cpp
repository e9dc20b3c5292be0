#include "core/quant/grid_search.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/quant/codebooks.h"

namespace fathom::quant {
namespace {

/// The memory of a grid. `points` are bytes of levels, as in codebooks.h; `neighbours` is the length of the lists.
template <typename G> class GridMemory {
 public:
  template <typename Word>
  GridMemory(const Word* points, int n_points, const std::array<float, G::kLevels>& levels, int neighbours);

  const G& grid() const { return grid_; }

 private:
  G grid_;
  std::vector<float> values_;
  std::vector<typename G::HalfCodes> codes_;
  std::vector<uint16_t> lists_;
};

template <typename G>
template <typename Word>
GridMemory<G>::GridMemory(const Word* points, int n_points, const std::array<float, G::kLevels>& levels,
                          int neighbours) {
  constexpr int kDim = G::kDim, kLevels = G::kLevels, kHalfDim = G::kHalfDim, kHalf = G::kHalf;
  for (int l = 0; l + 1 < kLevels; ++l) grid_.thresholds[l] = 0.5f * (levels[l] + levels[l + 1]);
  values_.resize(static_cast<size_t>(n_points * kDim));
  for (int i = 0; i < n_points; ++i) {
    int half[2] = {0, 0};
    for (int j = kDim - 1; j >= 0; --j) {  // downwards, so that element 0 ends up as the lowest digit
      const auto value = static_cast<float>(static_cast<int8_t>((points[i] >> (8 * j)) & 255u));
      values_[static_cast<size_t>(i * kDim + j)] = value;
      int level = 0;
      while (levels[level] != value) ++level;
      half[j / kHalfDim] = half[j / kHalfDim] * kLevels + level;
    }
    codes_.push_back({static_cast<uint8_t>(half[0]), static_cast<uint8_t>(half[1])});
  }

  // Squared distances between the patterns of a half; those of whole patterns are sums of two.
  std::vector<float> distance(kHalf * kHalf);
  for (int a = 0; a < kHalf; ++a) {
    for (int b = 0; b < kHalf; ++b) {
      float sum = 0;
      for (int j = 0, p = a, q = b; j < kHalfDim; ++j, p /= kLevels, q /= kLevels) {
        const float d = levels[p % kLevels] - levels[q % kLevels];
        sum += d * d;
      }
      distance[static_cast<size_t>(a * kHalf + b)] = sum;
    }
  }
  lists_.resize(static_cast<size_t>(kHalf * kHalf * neighbours));
  std::vector<std::pair<float, uint16_t>> all(static_cast<size_t>(n_points));
  for (int high = 0; high < kHalf; ++high) {
    for (int low = 0; low < kHalf; ++low) {
      for (int i = 0; i < n_points; ++i) {
        const typename G::HalfCodes c = codes_[static_cast<size_t>(i)];
        all[static_cast<size_t>(i)] = {
            distance[static_cast<size_t>(low * kHalf + c.low)] + distance[static_cast<size_t>(high * kHalf + c.high)],
            static_cast<uint16_t>(i)};
      }
      std::nth_element(all.begin(), all.begin() + neighbours - 1, all.end());
      for (int i = 0; i < neighbours; ++i) {
        lists_[static_cast<size_t>((low + kHalf * high) * neighbours + i)] = all[static_cast<size_t>(i)].second;
      }
    }
  }
  std::copy(levels.begin(), levels.end(), grid_.levels);
  grid_.neighbours = neighbours;
  grid_.values = values_.data();
  grid_.codes = codes_.data();
  grid_.lists = lists_.data();
}

constexpr std::array<float, 3> kIQ2Levels = {8, 25, 43};
constexpr std::array<float, 8> kIQ3XXSLevels = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr std::array<float, 8> kIQ3SLevels = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr std::array<float, 3> kIQ1Levels = {-1, 0, 1};

}  // namespace

// List lengths: lists of 64 lower the error on Gaussian rows by less than 0.1 percent, under strongly uneven importance
// by less than 0.7 percent, and take twice the time.
const Grid8& iq2_xxs_search() {
  static const GridMemory<Grid8> memory(kIQ2XXSGrid, 256, kIQ2Levels, 24);
  return memory.grid();
}
const Grid8& iq2_xs_search() {
  static const GridMemory<Grid8> memory(kIQ2XSGrid, 512, kIQ2Levels, 24);
  return memory.grid();
}
const Grid8& iq2_s_search() {
  static const GridMemory<Grid8> memory(kIQ2SGrid, 1024, kIQ2Levels, 24);
  return memory.grid();
}
const Grid4& iq3_xxs_search() {
  static const GridMemory<Grid4> memory(kIQ3XXSGrid, 256, kIQ3XXSLevels, 16);
  return memory.grid();
}
const Grid4& iq3_s_search() {
  static const GridMemory<Grid4> memory(kIQ3SGrid, 512, kIQ3SLevels, 16);
  return memory.grid();
}
const Grid8& iq1_search() {
  static const GridMemory<Grid8> memory(kIQ1SGrid, 2048, kIQ1Levels, 24);
  return memory.grid();
}

}  // namespace fathom::quant
