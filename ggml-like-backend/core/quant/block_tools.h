// What encoders do first with a block.
#pragma once

#include "core/quant/encode.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

/// scaled[kN] = x times the returned scale's power of two; zeros if it is_zero().
template <int kN> inline BlockScale scaled_block(const float* x, float* scaled) {
  const BlockScale scale(largest_magnitude(x, kN));
  const V8 down = splat8(scale.down());
  for (int i = 0; i < kN; i += 8) store(scaled + i, load8(x + i) * down);
  return scale;
}

/// scale.to_half(factor): here where the half is a normal one, as nearly always, without a call.
inline HalfFactor to_half(const BlockScale& scale, float factor) {
  const float full = factor * scale.up();
  uint32_t bits;
  __builtin_memcpy(&bits, &full, 4);
  const uint32_t magnitude_bits = bits & 0x7fffffffu;
  if (magnitude_bits < 0x38800000u || magnitude_bits >= 0x477ff000u) return scale.to_half(factor);
  const uint32_t rounded = magnitude_bits - 0x38000000u + 0xfffu + ((magnitude_bits >> 13) & 1u);
  const uint32_t value_bits = (bits & 0x80000000u) | ((rounded & ~0x1fffu) + 0x38000000u);
  float value;
  __builtin_memcpy(&value, &value_bits, 4);
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (rounded >> 13)), value * scale.down()};
}

}  // namespace fathom::quant::FATHOM_ISA
