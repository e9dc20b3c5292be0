#include <bit>
#include <cstdio>
#include <string>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/codebooks.h"
#include "core/quant/encode.h"

namespace fathom::quant {
namespace {

// Twice a midpoint between two of the levels is an integer, so the nearest level is a function of floor(2 t).
constexpr IQ4Nearest make_iq4_nearest() {
  IQ4Nearest table{};
  for (int twice = -IQ4Nearest::kOffset; twice < IQ4Nearest::kOffset; ++twice) {
    int code = 0;
    while (code < 15 && twice >= kIQ4Values[code] + kIQ4Values[code + 1]) ++code;
    table.code[twice + IQ4Nearest::kOffset] = static_cast<uint8_t>(code);
    table.level[twice + IQ4Nearest::kOffset] = kIQ4Values[code];
  }
  return table;
}

}  // namespace

constinit const IQ4Nearest kIQ4Nearest = make_iq4_nearest();

BlockScale::BlockScale(float largest_magnitude) {
  is_zero_ = largest_magnitude < kTooSmall;
  if (is_zero_) return;
  // The power of two alone, and its inverse, which of 2^127 is subnormal.
  const uint32_t exponent = std::bit_cast<uint32_t>(largest_magnitude) >> 23;
  up_ = std::bit_cast<float>(exponent << 23);
  down_ = exponent < 254 ? std::bit_cast<float>((254 - exponent) << 23) : 0x1p-127f;
}

HalfFactor BlockScale::to_half(float factor) const {
  if (factor == 0) return {};
  const float full = factor * up_;
  uint16_t bits = f32_to_f16(full);
  if ((bits & 0x7fffu) >= 0x7c00u) {
    char got[32];
    std::snprintf(got, sizeof(got), "%g", static_cast<double>(full));
    throw Error(ErrorCode::kModel, "quantize: a block's values are too large; expected a scale up to 65504, got " +
                                       std::string(got) + "; try bf16 or f32 for this tensor");
  }
  if ((bits & 0x7fffu) == 0) bits |= 1;
  return {bits, f16_to_f32(bits) * down_};
}

}  // namespace fathom::quant
