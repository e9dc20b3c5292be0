// The grids of the IQ formats in 16 bits a point instead of 32 or 64, so that they fit vector registers.
#pragma once

#include <cstdint>

namespace fathom::cpu {

/// Points by their index; element j of a point is a number of a few bits at bit j * that many. Its magnitude is
/// kGrid2Values[number] or kGrid3XXSValues[number] or, of IQ3_S, twice the number plus one.
struct GridCodes {
  alignas(64) uint16_t iq2_xxs[256];  ///< 8 elements of 2 bits
  alignas(64) uint16_t iq2_xs[512];
  alignas(64) uint16_t iq2_s[1024];
  alignas(64) uint16_t iq3_xxs[256];  ///< 4 elements of 3 bits
  alignas(64) uint16_t iq3_s[512];
};

constexpr uint8_t kGrid2Values[4] = {8, 25, 43, 0};
constexpr uint8_t kGrid3XXSValues[8] = {4, 12, 20, 28, 36, 44, 52, 62};

/// Made from core/quant/codebooks.h when the program starts.
extern const GridCodes kGridCodes;

}  // namespace fathom::cpu
