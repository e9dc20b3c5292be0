// FP8 e4m3 values and E8M0 scales, as DeepSeek's checkpoints store them.
//
// e4m3 ("fn" form): bit 7 sign, 6..3 exponent (bias 7), 2..0 mantissa. No infinity; 0x7f and 0xff are NaN; the largest
// value is 448; exponent 0 means subnormal, steps of 2^-9. E8M0: one byte, 2^(e - 127); 0 is 2^-127, 255 is NaN.
// Source: OCP 8-bit Floating Point 1.0, Microscaling Formats 1.0.
#pragma once

#include <bit>
#include <cstdint>

namespace fathom {

/// Value of every e4m3 byte.
extern const float kF8E4M3Values[256];

inline float f8_e4m3_to_f32(uint8_t bits) { return kF8E4M3Values[bits]; }

/// Round to nearest even; magnitudes above 448 saturate to 448, NaN stays NaN.
uint8_t f32_to_f8_e4m3(float value);

inline float e8m0_to_f32(uint8_t e) {
  const uint32_t bits = e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : static_cast<uint32_t>(e) << 23;
  return std::bit_cast<float>(bits);
}

}  // namespace fathom
