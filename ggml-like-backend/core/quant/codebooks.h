// Grids and sign patterns of the IQ formats. Declarations only (and <cstdint>), for files compiled for one instruction
// set.
#pragma once

#include <cstdint>

namespace fathom {

/// One entry = one grid point, element j in byte j (little endian). 8 unsigned magnitudes of 8, 25, 43.
extern const uint64_t kIQ2XXSGrid[256];
extern const uint64_t kIQ2XSGrid[512];
extern const uint64_t kIQ2SGrid[1024];
/// 4 unsigned magnitudes: 4, 12, 20, 28, 36, 44, 52, 62 (IQ3_XXS); 1, 3, ... 15 (IQ3_S).
extern const uint32_t kIQ3XXSGrid[256];
extern const uint32_t kIQ3SGrid[512];
/// 8 signed bytes of -1, 0, +1; IQ1_S and IQ1_M.
extern const uint64_t kIQ1SGrid[2048];

/// The 128 sign patterns with an even number of minus signs: bit j set = element j negative. Bits 0..6 are the index,
/// bit 7 makes the count even.
extern const uint8_t kEvenSigns[128];

/// 8 bytes of +1 or -1 for a byte of sign bits (for sign instructions; 0xff means -1).
extern const uint64_t kSignBytes[256];

}  // namespace fathom
