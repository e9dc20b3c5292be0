// Rows of weights and cache to floats at vector speed, from every format that has a block decoder. V is a vector of
// floats:
//   kLanes, F; set, mul, fma, store; from_bytes(u, offset): kLanes unsigned bytes minus offset; from_f16, from_bf16,
//   from_f8.
// Everything is static: each instruction set has its own copy.
#pragma once

#include "cpu/attention_kernels.h"
#include "cpu/avx2/decode_block.h"

namespace fathom::cpu {

/// w = (u - offset) * scale or u * scale + min, as weight_formats.h says.
template <typename V, typename Format> static void decode_blocks(const void* src, float* dst, int64_t n) {
  constexpr int kScales = Format::kElements / Format::kSub;
  const auto* block = static_cast<const typename Format::Block*>(src);
  for (int64_t i = 0; i < n; i += Format::kElements, ++block) {
    alignas(64) uint8_t u[Format::kElements];
    float scale[kScales], min[kScales];
    decode(*block, u, scale, min);
    for (int s = 0; s < kScales; ++s) {
      for (int j = s * Format::kSub; j < (s + 1) * Format::kSub; j += V::kLanes) {
        const typename V::F w = V::from_bytes(u + j, Format::kOffset);
        if constexpr (Format::kHasMin) {
          V::store(dst + i + j, V::fma(w, V::set(scale[s]), V::set(min[s])));
        } else {
          V::store(dst + i + j, V::mul(w, V::set(scale[s])));
        }
      }
    }
  }
}

/// A vector at a time, the last elements through a buffer.
template <typename V, typename Element, typename V::F (*kConvert)(const Element*)>
static void decode_elements(const void* src, float* dst, int64_t n) {
  const auto* p = static_cast<const Element*>(src);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::store(dst + i, kConvert(p + i));
  if (i == n) return;
  Element rest[V::kLanes] = {};
  float values[V::kLanes];
  __builtin_memcpy(rest, p + i, static_cast<size_t>(n - i) * sizeof(Element));
  V::store(values, kConvert(rest));
  __builtin_memcpy(dst + i, values, static_cast<size_t>(n - i) * sizeof(float));
}

template <typename V> static void decode_floats(const void* src, float* dst, int64_t n) {
  __builtin_memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
}

/// 16 bits of IEEE half whose exponent and mantissa stand for 2^-8 of the e4m3 value, subnormals too; 8 at a time.
static inline __m128i halves_of_f8(const uint8_t* p) {
  const __m128i bytes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_and_si128(bytes, _mm_set1_epi16(0x7f));
  const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(bytes, _mm_set1_epi16(0x80)), 8);
  return _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
}

/// By the type's number in DType; null where there is none.
template <typename V> static DecodeRow row_decoder_of(uint32_t dtype) {
  switch (dtype) {
    case 0: return decode_floats<V>;
    case 1: return decode_elements<V, uint16_t, V::from_f16>;
    case 2: return decode_blocks<V, Q4_0>;
    case 3: return decode_blocks<V, Q4_1>;
    case 6: return decode_blocks<V, Q5_0>;
    case 7: return decode_blocks<V, Q5_1>;
    case 8: return decode_blocks<V, Q8_0>;
    case 10: return decode_blocks<V, Q2_K>;
    case 11: return decode_blocks<V, Q3_K>;
    case 12: return decode_blocks<V, Q4_K>;
    case 13: return decode_blocks<V, Q5_K>;
    case 14: return decode_blocks<V, Q6_K>;
    case 16: return decode_blocks<V, IQ2_XXS>;
    case 17: return decode_blocks<V, IQ2_XS>;
    case 18: return decode_blocks<V, IQ3_XXS>;
    case 19: return decode_blocks<V, IQ1_S>;
    case 20: return decode_blocks<V, IQ4_NL>;
    case 21: return decode_blocks<V, IQ3_S>;
    case 22: return decode_blocks<V, IQ2_S>;
    case 23: return decode_blocks<V, IQ4_XS>;
    case 29: return decode_blocks<V, IQ1_M>;
    case 30: return decode_elements<V, uint16_t, V::from_bf16>;
    case 39: return decode_blocks<V, MXFP4>;
    case 1000: return decode_elements<V, uint8_t, V::from_f8>;
    default: return nullptr;
  }
}

}  // namespace fathom::cpu
