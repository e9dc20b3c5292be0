// Weights of any type with random bits and scales of ordinary size.
#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "core/float_convert.h"

namespace fathom::test {

/// Offsets of the half-precision scales within a block.
inline std::vector<size_t> half_offsets(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K: return {0, 2};
    case DType::kQ2_K: return {80, 82};
    case DType::kQ3_K: return {108};
    case DType::kQ6_K: return {208};
    case DType::kIQ1_M:
    case DType::kMXFP4:
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kF8_E4M3: return {};
    default: return {0};
  }
}

/// Random blocks: any bits, but scales of ordinary size and both signs.
inline void fill_weights(DType type, std::byte* w, size_t n_bytes, std::mt19937& rng) {
  const DTypeInfo& info = dtype_info(type);
  for (size_t i = 0; i < n_bytes; ++i) w[i] = static_cast<std::byte>(rng());
  std::normal_distribution<float> normal;
  for (size_t at = 0; at < n_bytes; at += static_cast<size_t>(info.block_bytes)) {
    const float value = normal(rng);
    if (type == DType::kF32) {
      std::memcpy(w + at, &value, 4);
    } else if (type == DType::kF16 || type == DType::kBF16) {
      const uint16_t bits = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(w + at, &bits, 2);
    } else if (type == DType::kF8_E4M3) {
      if ((w[at] & std::byte{0x7f}) == std::byte{0x7f}) w[at] = std::byte{0};  // no NaN
    } else if (type == DType::kMXFP4) {
      w[at] = static_cast<std::byte>(120 + rng() % 8);
    } else if (type == DType::kIQ1_M) {  // the scale's top nibbles: 0x2...: between 2^-7 and 2^-6
      w[at + 55] = (w[at + 55] & std::byte{0x0f}) | std::byte{0x20};
    }
    for (const size_t offset : half_offsets(type)) {
      const uint16_t bits = f32_to_f16(0.01f * normal(rng));
      std::memcpy(w + at + offset, &bits, 2);
    }
  }
}

}  // namespace fathom::test
