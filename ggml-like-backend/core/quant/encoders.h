// Every encoder, compiled for the instruction set that FATHOM_ISA names.
#pragma once

#include "core/quant/encode_iq.h"
#include "core/quant/encode_iq1.h"
#include "core/quant/encode_k.h"
#include "core/quant/encode_mxfp4.h"
#include "core/quant/encode_simple.h"

namespace fathom::quant::FATHOM_ISA {

inline constexpr struct Ones {
  float all[kSuperBlock];
  constexpr Ones() : all() {
    for (float& one : all) one = 1;
  }
} kOnes;

/// Block after block.
template <typename Block, int kElements = kSuperBlock>
void encode_as(const float* x, const float* w, void* blocks, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    encode(x + i * kElements, w != nullptr ? w + i * kElements : kOnes.all, static_cast<Block*>(blocks) + i);
}

/// As many blocks at once as there are lanes.
template <typename Block> void encode_beside(const float* x, const float* w, void* blocks, int64_t n) {
  for (int64_t i = 0; i < n; i += kTrialLanes) {
    const int count = n - i < kTrialLanes ? static_cast<int>(n - i) : kTrialLanes;
    const BlocksBeside beside(x + i * kN, count);
    if (w == nullptr) {
      encode(beside, EqualWeights{}, static_cast<Block*>(blocks) + i, count);
    } else {
      encode(beside, Elements(w + i * kN, count), static_cast<Block*>(blocks) + i, count);
    }
  }
}

inline float largest_of_row(const float* x, int64_t n) {
  V8 largest = splat8(0), not_zero = splat8(0);  // x - x is zero for numbers and NaN for the rest
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const V8 v = load8(x + i);
    largest = most(largest, most(v, -v));
    not_zero += v - v;
  }
  float out = 0, difference = sum8(not_zero);
  for (int j = 0; j < 8; ++j) out = most_of(out, largest[j]);
  for (; i < n; ++i) {
    out = most_of(out, magnitude(x[i]));
    difference += x[i] - x[i];
  }
  return out + difference;
}

/// f16_to_f32 without branches, in vectors.
inline void widen_halves(const void* halves, float* out, int64_t n) {
  const auto* bytes = static_cast<const uint8_t*>(halves);
  for (int64_t i = 0; i < n; ++i) {
    uint16_t h;
    __builtin_memcpy(&h, bytes + 2 * i, 2);
    const uint32_t rest = static_cast<uint32_t>(h & 0x7fffu) << 13;
    float finite;
    __builtin_memcpy(&finite, &rest, 4);
    finite *= 0x1p112f;  // the difference of the exponents' biases
    uint32_t bits;
    __builtin_memcpy(&bits, &finite, 4);
    bits = (rest >= 0x7c00u << 13 ? rest | 0x7f800000u : bits) | static_cast<uint32_t>(h & 0x8000u) << 16;
    __builtin_memcpy(out + i, &bits, 4);
  }
}

constexpr Encoders make_encoders(const char* isa) {
  Encoders e{};
  e.isa = isa;
  e.largest = largest_of_row;
  e.widen_halves = widen_halves;
  // GGUF's type ids, as in core/dtype.h
  e.by_type[2] = encode_beside<BlockQ4_0>;
  e.by_type[3] = encode_beside<BlockQ4_1>;
  e.by_type[6] = encode_beside<BlockQ5_0>;
  e.by_type[7] = encode_beside<BlockQ5_1>;
  e.by_type[8] = encode_beside<BlockQ8_0>;
  e.by_type[10] = encode_as<BlockQ2_K>;
  e.by_type[11] = encode_as<BlockQ3_K>;
  e.by_type[12] = encode_as<BlockQ4_K>;
  e.by_type[13] = encode_as<BlockQ5_K>;
  e.by_type[14] = encode_as<BlockQ6_K>;
  e.by_type[16] = encode_as<BlockIQ2_XXS>;
  e.by_type[17] = encode_as<BlockIQ2_XS>;
  e.by_type[18] = encode_as<BlockIQ3_XXS>;
  e.by_type[19] = encode_as<BlockIQ1_S>;
  e.by_type[20] = encode_beside<BlockIQ4_NL>;
  e.by_type[21] = encode_as<BlockIQ3_S>;
  e.by_type[22] = encode_as<BlockIQ2_S>;
  e.by_type[23] = encode_as<BlockIQ4_XS>;
  e.by_type[29] = encode_as<BlockIQ1_M>;
  e.by_type[39] = encode_as<BlockMXFP4, kSmallBlock>;
  return e;
}

}  // namespace fathom::quant::FATHOM_ISA
