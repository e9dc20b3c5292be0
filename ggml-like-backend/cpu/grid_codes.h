// The grids of the IQ formats as tables of bytes that fit vector registers.
#pragma once

#include <cstdint>

namespace fathom::cpu {

/// Elements of grid points by the point's index, as numbers of a few bits: of two, number j of a byte at bit 2 j; of
/// three, bits of number j at kPlaces3[j].
/// A number's magnitude is kGrid2Values[number] or kGrid3XXSValues[number] or kGrid3SValues[number]; of IQ1 the element
/// is the number minus one.
struct GridCodes {
  alignas(64) uint8_t iq2_xxs[2][256];  ///< elements 0..3, elements 4..7, of 2 bits
  alignas(64) uint8_t iq2_xs[2][512];
  alignas(64) uint8_t iq2_s[2][1024];
  alignas(64) uint8_t iq3_xxs[2][256];  ///< elements 0 and 1, elements 2 and 3
  alignas(64) uint8_t iq3_s[2][512];
  alignas(64) uint8_t iq1_low[2048];  ///< elements 0..3 of 2 bits
  /// Elements 4..7 of IQ1: the grid is sorted by them, and they change at most once among 16 points in a row. Before
  /// the change, after it, and the low byte of the last index before it, all by index / 16.
  alignas(64) uint8_t iq1_high[2][128];
  alignas(64) uint8_t iq1_last[128];
  alignas(64) uint64_t iq1_points[2048];  ///< all elements, 8 * (element + 1) in a byte each
};

/// Of the four elements of a point of IQ3: 0 and 1 share a byte, 2 and 3. Bit e is free of number e's bits, and bits 6
/// and 7 of all: a sign can be put there, and six bits are looked up.
constexpr uint8_t kPlaces3[4][3] = {{1, 2, 3}, {0, 4, 5}, {0, 1, 3}, {2, 4, 5}};

constexpr uint8_t kGrid2Values[4] = {8, 25, 43, 0};
constexpr uint8_t kGrid3XXSValues[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr uint8_t kGrid3SValues[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/// Made from core/quant/codebooks.h when the program starts.
extern const GridCodes kGridCodes;

}  // namespace fathom::cpu
