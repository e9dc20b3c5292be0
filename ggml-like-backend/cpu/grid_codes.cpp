#include "cpu/grid_codes.h"

#include <algorithm>
#include <iterator>

#include "core/quant/codebooks.h"

namespace fathom::cpu {
namespace {

/// Bytes of a grid point to numbers of `kBits` bits: their places among `values`.
template <int kBits, typename Point, size_t kPoints, size_t kValues>
void encode(const Point (&grid)[kPoints], const uint8_t (&values)[kValues], uint16_t (&codes)[kPoints]) {
  for (size_t i = 0; i < kPoints; ++i) {
    codes[i] = 0;
    for (size_t j = 0; j < sizeof(Point); ++j) {
      const auto magnitude = static_cast<uint8_t>(grid[i] >> (8 * j));
      const auto number = std::find(std::begin(values), std::end(values), magnitude) - std::begin(values);
      codes[i] = static_cast<uint16_t>(codes[i] | number << (kBits * j));
    }
  }
}

GridCodes make_codes() {
  constexpr uint8_t kOdd[8] = {1, 3, 5, 7, 9, 11, 13, 15};
  GridCodes codes;
  encode<2>(kIQ2XXSGrid, kGrid2Values, codes.iq2_xxs);
  encode<2>(kIQ2XSGrid, kGrid2Values, codes.iq2_xs);
  encode<2>(kIQ2SGrid, kGrid2Values, codes.iq2_s);
  encode<3>(kIQ3XXSGrid, kGrid3XXSValues, codes.iq3_xxs);
  encode<3>(kIQ3SGrid, kOdd, codes.iq3_s);
  return codes;
}

}  // namespace

const GridCodes kGridCodes = make_codes();

}  // namespace fathom::cpu
