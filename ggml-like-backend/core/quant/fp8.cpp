#include "core/quant/fp8.h"

#include <cmath>
#include <limits>

namespace fathom {
namespace {

constexpr float value_of(int bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  float magnitude = 0;
  if ((bits & 0x7f) == 0x7f) {
    magnitude = std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = static_cast<float>(8 + mantissa) * 0x1p-10f * static_cast<float>(1 << exponent);
  }
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

#define FATHOM_ROW4(b) value_of(b), value_of((b) + 1), value_of((b) + 2), value_of((b) + 3)
#define FATHOM_ROW16(b) FATHOM_ROW4(b), FATHOM_ROW4((b) + 4), FATHOM_ROW4((b) + 8), FATHOM_ROW4((b) + 12)
#define FATHOM_ROW64(b) FATHOM_ROW16(b), FATHOM_ROW16((b) + 16), FATHOM_ROW16((b) + 32), FATHOM_ROW16((b) + 48)

}  // namespace

constinit const float kF8E4M3Values[256] = {FATHOM_ROW64(0), FATHOM_ROW64(64), FATHOM_ROW64(128), FATHOM_ROW64(192)};

uint8_t f32_to_f8_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448 and up
  if (magnitude < 0x3c800000u) {                                            // below 2^-6: subnormal, steps of 2^-9
    const float steps = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p9f);
    return static_cast<uint8_t>(sign | static_cast<uint8_t>(steps));
  }
  // Keep 3 mantissa bits and move the bias from 127 to 7; a carry runs into the exponent as it should.
  const uint32_t odd = (magnitude >> 20) & 1u;
  return static_cast<uint8_t>(sign | ((magnitude - (120u << 23) + 0x7ffffu + odd) >> 20));
}

}  // namespace fathom
