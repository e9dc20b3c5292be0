#include "core/float_convert.h"

#include <doctest/doctest.h>
#include <cmath>
#include <limits>

namespace fathom {
namespace {

/// Value of a half, spelled out from its fields.
double half_value(int h) {
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? std::numeric_limits<double>::infinity()
                                            : std::ldexp(1024 + mantissa, exponent - 25);
  return (h & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST_CASE("all 65536 halves convert to their value and back") {
  for (int h = 0; h < 65536; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    const float f = f16_to_f32(bits);
    if ((h & 0x7c00) == 0x7c00 && (h & 1023) != 0) {
      if (!std::isnan(f) || (f32_to_f16(f) & 0x7fff) <= 0x7c00) FAIL("NaN lost at " << h);
      continue;
    }
    if (static_cast<double>(f) != half_value(h) || f32_to_f16(f) != bits) FAIL("half " << h << " became " << f);
  }
}

TEST_CASE("floats between two halves round to the nearer one, ties to even") {
  for (int h = 0; h < 0x7bff; ++h) {
    const float low = f16_to_f32(static_cast<uint16_t>(h));
    const float high = f16_to_f32(static_cast<uint16_t>(h + 1));
    const float middle = 0.5f * (low + high);
    const int even = (h & 1) != 0 ? h + 1 : h;
    if (f32_to_f16(middle) != even || f32_to_f16(-middle) != (even | 0x8000)) FAIL("tie above half " << h);
    if (f32_to_f16(std::nextafter(middle, low)) != h) FAIL("just below the tie above half " << h);
    if (f32_to_f16(std::nextafter(middle, high)) != h + 1) FAIL("just above the tie above half " << h);
  }
  CHECK(f32_to_f16(65519.0f) == 0x7bff);
  CHECK(f32_to_f16(65520.0f) == 0x7c00);
  CHECK(f32_to_f16(-1e30f) == 0xfc00);
  CHECK(f32_to_f16(std::numeric_limits<float>::infinity()) == 0x7c00);
  CHECK(f32_to_f16(1e-10f) == 0);
  CHECK(f32_to_f16(-1e-10f) == 0x8000);
}

TEST_CASE("bfloat16 keeps every 16-bit pattern and rounds to nearest even") {
  for (int h = 0; h < 65536; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    const float f = bf16_to_f32(bits);
    if (std::isnan(f)) {
      if (!std::isnan(bf16_to_f32(f32_to_bf16(f)))) FAIL("NaN lost at " << h);
      continue;
    }
    if (f32_to_bf16(f) != bits) FAIL("bfloat16 " << h);
  }
  CHECK(f32_to_bf16(1.0f + 0x1p-8f) == 0x3f80);             // tie, even below
  CHECK(f32_to_bf16(1.0f + 0x1p-7f + 0x1p-8f) == 0x3f82);   // tie, even above
  CHECK(f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f) == 0x3f81);  // past the tie
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
  // A NaN whose upper mantissa bits are zero must not become infinity.
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace fathom
