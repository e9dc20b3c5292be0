// Rows of weights and cache to floats at vector speed, from every format that has a block decoder.
#include <immintrin.h>

#include "cpu/attention_kernels.h"
#include "cpu/avx2/decode_block.h"

namespace fathom::cpu::avx2 {
namespace {

/// w = (u - offset) * scale or u * scale + min, as weight_formats.h says.
template <typename Format>
void decode_blocks(const void* src, float* dst, int64_t n) {
  constexpr int kScales = Format::kElements / Format::kSub;
  const auto* block = static_cast<const typename Format::Block*>(src);
  for (int64_t i = 0; i < n; i += Format::kElements, ++block) {
    alignas(32) uint8_t u[Format::kElements];
    float scale[kScales], min[kScales];
    decode(*block, u, scale, min);
    for (int s = 0; s < kScales; ++s) {
      const __m256 factor = _mm256_set1_ps(scale[s]);
      for (int j = 0; j < Format::kSub; j += 8) {
        const int at = s * Format::kSub + j;
        const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(u + at)));
        __m256 w;
        if constexpr (Format::kHasMin) {
          w = _mm256_fmadd_ps(_mm256_cvtepi32_ps(bytes), factor, _mm256_set1_ps(min[s]));
        } else {
          w = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, _mm256_set1_epi32(Format::kOffset))), factor);
        }
        _mm256_storeu_ps(dst + i + at, w);
      }
    }
  }
}

/// Eight elements at a time, the last ones through a buffer.
template <typename Element, typename Convert>
void decode_elements(const void* src, float* dst, int64_t n, Convert convert) {
  const auto* p = static_cast<const Element*>(src);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, convert(p + i));
  if (i == n) return;
  Element rest[8] = {};
  float values[8];
  __builtin_memcpy(rest, p + i, static_cast<size_t>(n - i) * sizeof(Element));
  _mm256_storeu_ps(values, convert(rest));
  __builtin_memcpy(dst + i, values, static_cast<size_t>(n - i) * sizeof(float));
}

void decode_f32(const void* src, float* dst, int64_t n) { __builtin_memcpy(dst, src, static_cast<size_t>(n) * sizeof(float)); }
void decode_f16(const void* src, float* dst, int64_t n) {
  decode_elements<uint16_t>(src, dst, n, [](const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); });
}
void decode_bf16(const void* src, float* dst, int64_t n) {
  decode_elements<uint16_t>(src, dst, n, [](const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  });
}
void decode_f8_e4m3(const void* src, float* dst, int64_t n) {
  decode_elements<uint8_t>(src, dst, n, [](const uint8_t* p) {
    // As the bits of an IEEE half, exponent and mantissa stand for 2^-8 of the value, subnormals too.
    const __m128i bytes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i magnitude = _mm_and_si128(bytes, _mm_set1_epi16(0x7f));
    const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(bytes, _mm_set1_epi16(0x80)), 8);
    const __m128i half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0F));
  });
}

}  // namespace

DecodeRow row_decoder(uint32_t dtype) {
  switch (dtype) {
    case 0: return decode_f32;
    case 1: return decode_f16;
    case 2: return decode_blocks<Q4_0>;
    case 3: return decode_blocks<Q4_1>;
    case 6: return decode_blocks<Q5_0>;
    case 7: return decode_blocks<Q5_1>;
    case 8: return decode_blocks<Q8_0>;
    case 10: return decode_blocks<Q2_K>;
    case 11: return decode_blocks<Q3_K>;
    case 12: return decode_blocks<Q4_K>;
    case 13: return decode_blocks<Q5_K>;
    case 14: return decode_blocks<Q6_K>;
    case 16: return decode_blocks<IQ2_XXS>;
    case 17: return decode_blocks<IQ2_XS>;
    case 18: return decode_blocks<IQ3_XXS>;
    case 19: return decode_blocks<IQ1_S>;
    case 20: return decode_blocks<IQ4_NL>;
    case 21: return decode_blocks<IQ3_S>;
    case 22: return decode_blocks<IQ2_S>;
    case 23: return decode_blocks<IQ4_XS>;
    case 29: return decode_blocks<IQ1_M>;
    case 30: return decode_bf16;
    case 39: return decode_blocks<MXFP4>;
    case 1000: return decode_f8_e4m3;
    default: return nullptr;
  }
}

}  // namespace fathom::cpu::avx2
