#include "cpu/grid_codes.h"

#include <algorithm>
#include <iterator>

#include "core/quant/codebooks.h"

namespace fathom::cpu {
namespace {

/// The place of element j of a grid point among `values`.
template <size_t kValues> uint32_t number_of(uint64_t point, int j, const uint8_t (&values)[kValues]) {
  const auto magnitude = static_cast<uint8_t>(point >> (8 * j));
  return static_cast<uint32_t>(std::find(std::begin(values), std::end(values), magnitude) - std::begin(values));
}

/// Four elements from `first` on, two bits each.
template <size_t kValues> uint8_t code_of_four(uint64_t point, int first, const uint8_t (&values)[kValues]) {
  uint32_t code = 0;
  for (int j = 0; j < 4; ++j) code |= number_of(point, first + j, values) << (2 * j);
  return static_cast<uint8_t>(code);
}

/// Elements first and first + 1, three bits each.
uint8_t code_of_two(uint32_t point, int first, const uint8_t (&values)[8]) {
  uint32_t code = 0;
  for (int j = first; j < first + 2; ++j) {
    const uint32_t number = number_of(point, j, values);
    for (int bit = 0; bit < 3; ++bit) code |= (number >> bit & 1u) << kPlaces3[j][bit];
  }
  return static_cast<uint8_t>(code);
}

template <size_t kPoints> void encode(const uint64_t (&grid)[kPoints], uint8_t (&codes)[2][kPoints]) {
  for (size_t i = 0; i < kPoints; ++i) {
    codes[0][i] = code_of_four(grid[i], 0, kGrid2Values);
    codes[1][i] = code_of_four(grid[i], 4, kGrid2Values);
  }
}

template <size_t kPoints>
void encode(const uint32_t (&grid)[kPoints], const uint8_t (&values)[8], uint8_t (&codes)[2][kPoints]) {
  for (size_t i = 0; i < kPoints; ++i) {
    codes[0][i] = code_of_two(grid[i], 0, values);
    codes[1][i] = code_of_two(grid[i], 2, values);
  }
}

GridCodes make_codes() {
  GridCodes codes;
  encode(kIQ2XXSGrid, codes.iq2_xxs);
  encode(kIQ2XSGrid, codes.iq2_xs);
  encode(kIQ2SGrid, codes.iq2_s);
  encode(kIQ3XXSGrid, kGrid3XXSValues, codes.iq3_xxs);
  encode(kIQ3SGrid, kGrid3SValues, codes.iq3_s);
  constexpr uint8_t kTernary[3] = {0xff, 0, 1};
  for (size_t i = 0; i < std::size(kIQ1SGrid); ++i) {
    codes.iq1_low[i] = code_of_four(kIQ1SGrid[i], 0, kTernary);
    codes.iq1_points[i] = 0;
    for (int j = 0; j < 8; ++j) {
      codes.iq1_points[i] |= static_cast<uint64_t>(8 * number_of(kIQ1SGrid[i], j, kTernary)) << (8 * j);
    }
  }
  for (size_t run = 0; run < std::size(codes.iq1_last); ++run) {
    const auto high = [&](size_t i) { return code_of_four(kIQ1SGrid[16 * run + i], 4, kTernary); };
    codes.iq1_high[0][run] = high(0);
    codes.iq1_high[1][run] = high(15);
    size_t last = 15;
    while (high(last) != high(0)) --last;
    codes.iq1_last[run] = static_cast<uint8_t>(16 * run + last);
  }
  return codes;
}

}  // namespace

const GridCodes kGridCodes = make_codes();

}  // namespace fathom::cpu
