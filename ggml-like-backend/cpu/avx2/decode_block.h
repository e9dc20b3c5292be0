// Blocks of every quantized format into unsigned bytes in element order, with the scales (and minima) of their parts:
// decode(block, u, scale, min). The general way to a kernel for a format; the frequent ones have direct unpackers.
// Everything is static: files compiled for different instruction sets each have their own copy.
#pragma once

#include <immintrin.h>

#include "core/quant/codebooks.h"
#include "cpu/grid_codes.h"
#include "cpu/weight_formats.h"

namespace fathom::cpu {

static inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }

static inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline void store32(uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
static inline uint32_t load_u32(const void* p) {
  uint32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

/// 16 packed bytes: low nibbles are elements 0..15, high nibbles 16..31.
static inline __m256i nibbles32(const uint8_t* qs) {
  const __m128i packed = load16(qs);
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/// 0x10 in byte i where bit i is set: the fifth bits of Q5_0 and Q5_1.
static inline __m256i fifth_bits32(uint32_t bits) {
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(static_cast<int>(bits)),
      _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0x0000000000000000));
  const __m256i mask = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask), _mm256_set1_epi8(0x10));
}

static inline void decode(const BlockQ4_0& b, uint8_t* u, float* scale, float*) {
  store32(u, nibbles32(b.qs));
  *scale = half_to_float(b.d);
}
static inline void decode(const BlockQ4_1& b, uint8_t* u, float* scale, float* min) {
  store32(u, nibbles32(b.qs));
  *scale = half_to_float(b.d);
  *min = half_to_float(b.m);
}
static inline void decode(const BlockQ5_0& b, uint8_t* u, float* scale, float*) {
  store32(u, _mm256_or_si256(nibbles32(b.qs), fifth_bits32(b.qh)));
  *scale = half_to_float(b.d);
}
static inline void decode(const BlockQ5_1& b, uint8_t* u, float* scale, float* min) {
  store32(u, _mm256_or_si256(nibbles32(b.qs), fifth_bits32(b.qh)));
  *scale = half_to_float(b.d);
  *min = half_to_float(b.m);
}
static inline void decode(const BlockQ8_0& b, uint8_t* u, float* scale, float*) {
  store32(u, _mm256_xor_si256(load32(b.qs), _mm256_set1_epi8(static_cast<char>(0x80))));
  *scale = half_to_float(b.d);
}

/// Sixteen bytes of a value table plus its offset, in both halves.
static inline __m256i value_table(const int8_t* values, int offset) {
  const __m128i table = _mm_add_epi8(load16(values), _mm_set1_epi8(static_cast<char>(offset)));
  return _mm256_broadcastsi128_si256(table);
}

static inline void decode(const BlockIQ4_NL& b, uint8_t* u, float* scale, float*) {
  store32(u, _mm256_shuffle_epi8(value_table(kIQ4Values, IQ4_NL::kOffset), nibbles32(b.qs)));
  *scale = half_to_float(b.d);
}
static inline float mxfp4_scale(uint8_t e) {
  // 2^(e - 128), which is subnormal for e = 0 and 1.
  const uint32_t bits = e >= 2 ? (e - 1u) << 23 : 0x00200000u << e;
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
}
static inline void decode(const BlockMXFP4& b, uint8_t* u, float* scale, float*) {
  store32(u, _mm256_shuffle_epi8(value_table(kE2M1Doubled, MXFP4::kOffset), nibbles32(b.qs)));
  *scale = mxfp4_scale(b.e);
}

/// Eight bytes to floats, times a factor.
static inline __m256 scaled_bytes(uint64_t bytes, float factor) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(factor));
}
static inline __m256 scaled_signed_bytes(__m128i bytes, float factor) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_set1_ps(factor));
}

/// The 8 six-bit scales and minima of Q4_K and Q5_K.
static inline void k_scales_mins(const uint8_t* packed, float d, float dmin, float* scale, float* min) {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  const uint64_t scales = (a & 0x3f3f3f3fu) | static_cast<uint64_t>((c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u)) << 32;
  const uint64_t mins = (b & 0x3f3f3f3fu) | static_cast<uint64_t>(((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u))
                                                << 32;
  _mm256_storeu_ps(scale, scaled_bytes(scales, d));
  _mm256_storeu_ps(min, scaled_bytes(mins, -dmin));
}

static inline void decode(const BlockQ4_K& b, uint8_t* u, float* scale, float* min) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int g = 0; g < 4; ++g) {
    const __m256i packed = load32(b.qs + 32 * g);
    store32(u + 64 * g, _mm256_and_si256(packed, low));
    store32(u + 64 * g + 32, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
  }
  k_scales_mins(b.scales, half_to_float(b.d), half_to_float(b.dmin), scale, min);
}

static inline void decode(const BlockQ5_K& b, uint8_t* u, float* scale, float* min) {
  const __m256i low = _mm256_set1_epi8(15), bit = _mm256_set1_epi8(0x10);
  __m256i high = load32(b.qh);
  for (int g = 0; g < 4; ++g) {
    const __m256i packed = load32(b.qs + 32 * g);
    const __m256i even = _mm256_and_si256(_mm256_slli_epi16(high, 4), bit);
    const __m256i odd = _mm256_and_si256(_mm256_slli_epi16(high, 3), bit);
    store32(u + 64 * g, _mm256_or_si256(_mm256_and_si256(packed, low), even));
    store32(u + 64 * g + 32, _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low), odd));
    high = _mm256_srli_epi16(high, 2);
  }
  k_scales_mins(b.scales, half_to_float(b.d), half_to_float(b.dmin), scale, min);
}

static inline void decode(const BlockQ6_K& b, uint8_t* u, float* scale, float*) {
  const __m256i low = _mm256_set1_epi8(15), upper = _mm256_set1_epi8(0x30);
  for (int half = 0; half < 2; ++half) {
    const __m256i l0 = load32(b.ql + 64 * half), l1 = load32(b.ql + 64 * half + 32);
    const __m256i h = load32(b.qh + 32 * half);
    uint8_t* out = u + 128 * half;
    const auto join = [&](__m256i l, __m256i hi) {
      return _mm256_or_si256(_mm256_and_si256(l, low), _mm256_and_si256(hi, upper));
    };
    store32(out, join(l0, _mm256_slli_epi16(h, 4)));
    store32(out + 32, join(l1, _mm256_slli_epi16(h, 2)));
    store32(out + 64, join(_mm256_srli_epi16(l0, 4), h));
    store32(out + 96, join(_mm256_srli_epi16(l1, 4), _mm256_srli_epi16(h, 2)));
  }
  const float d = half_to_float(b.d);
  const __m128i scales = load16(b.scales);
  _mm256_storeu_ps(scale, scaled_signed_bytes(scales, d));
  _mm256_storeu_ps(scale + 8, scaled_signed_bytes(_mm_srli_si128(scales, 8), d));
}

static inline void decode(const BlockQ2_K& b, uint8_t* u, float* scale, float* min) {
  const __m256i two = _mm256_set1_epi8(3);
  for (int half = 0; half < 2; ++half) {
    __m256i packed = load32(b.qs + 32 * half);
    for (int s = 0; s < 4; ++s) {
      store32(u + 128 * half + 32 * s, _mm256_and_si256(packed, two));
      packed = _mm256_srli_epi16(packed, 2);
    }
  }
  const float d = half_to_float(b.d), dmin = -half_to_float(b.dmin);
  const __m128i packed = load16(b.scales), low = _mm_set1_epi8(15);
  const __m128i scales = _mm_and_si128(packed, low), mins = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
  _mm256_storeu_ps(scale, scaled_signed_bytes(scales, d));
  _mm256_storeu_ps(scale + 8, scaled_signed_bytes(_mm_srli_si128(scales, 8), d));
  _mm256_storeu_ps(min, scaled_signed_bytes(mins, dmin));
  _mm256_storeu_ps(min + 8, scaled_signed_bytes(_mm_srli_si128(mins, 8), dmin));
}

/// The 16 six-bit scales of Q3_K, minus 32, as bytes.
static inline __m128i q3_k_scales(const uint8_t* packed) {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  const __m128i low = _mm_and_si128(
      _mm_set_epi32(static_cast<int>(b >> 4), static_cast<int>(a >> 4), static_cast<int>(b), static_cast<int>(a)),
      _mm_set1_epi8(15));
  const __m128i high = _mm_and_si128(
      _mm_set_epi32(static_cast<int>(c >> 2), static_cast<int>(c), static_cast<int>(c << 2), static_cast<int>(c << 4)),
      _mm_set1_epi8(0x30));
  return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
}

static inline void decode(const BlockQ3_K& b, uint8_t* u, float* scale, float*) {
  const __m256i two = _mm256_set1_epi8(3), one = _mm256_set1_epi8(1);
  __m256i mask = load32(b.hmask);
  for (int half = 0; half < 2; ++half) {
    __m256i packed = load32(b.qs + 32 * half);
    for (int s = 0; s < 4; ++s) {
      const __m256i third = _mm256_slli_epi16(_mm256_and_si256(mask, one), 2);
      store32(u + 128 * half + 32 * s, _mm256_or_si256(_mm256_and_si256(packed, two), third));
      packed = _mm256_srli_epi16(packed, 2);
      mask = _mm256_srli_epi16(mask, 1);
    }
  }
  const float d = half_to_float(b.d);
  const __m128i scales = q3_k_scales(b.scales);
  _mm256_storeu_ps(scale, scaled_signed_bytes(scales, d));
  _mm256_storeu_ps(scale + 8, scaled_signed_bytes(_mm_srli_si128(scales, 8), d));
}

static inline void decode(const BlockIQ4_XS& b, uint8_t* u, float* scale, float*) {
  const __m256i table = value_table(kIQ4Values, IQ4_XS::kOffset);
  const float d = half_to_float(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    store32(u + 32 * ib, _mm256_shuffle_epi8(table, nibbles32(b.qs + 16 * ib)));
    const int ls = ((b.scales_l[ib / 2] >> (4 * (ib & 1))) & 15) | ((b.scales_h >> (2 * ib)) & 3) << 4;
    scale[ib] = d * static_cast<float>(ls - 32);
  }
}

static inline __m256i four_words(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm256_set_epi64x(static_cast<long long>(d), static_cast<long long>(c), static_cast<long long>(b),
                           static_cast<long long>(a));
}
/// Magnitudes with +-1 signs applied, plus the offset.
static inline __m256i signed_grid(__m256i magnitudes, __m256i signs, int offset) {
  return _mm256_add_epi8(_mm256_sign_epi8(magnitudes, signs), _mm256_set1_epi8(static_cast<char>(offset)));
}
/// Signs of four groups from 28 bits, seven each.
static inline __m256i even_signs(uint32_t a) {
  return four_words(kSignBytes[kEvenSigns[a & 127]], kSignBytes[kEvenSigns[(a >> 7) & 127]],
                    kSignBytes[kEvenSigns[(a >> 14) & 127]], kSignBytes[kEvenSigns[(a >> 21) & 127]]);
}
static inline __m256i plain_signs(const uint8_t* s) {
  return four_words(kSignBytes[s[0]], kSignBytes[s[1]], kSignBytes[s[2]], kSignBytes[s[3]]);
}

static inline void decode(const BlockIQ2_XXS& b, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(b.d) * 0.25f;
  for (int ib = 0; ib < 8; ++ib) {
    const uint32_t q = load_u32(&b.qs[4 * ib]), a = load_u32(&b.qs[4 * ib + 2]);
    const __m256i grid = four_words(kIQ2XXSGrid[q & 255], kIQ2XXSGrid[(q >> 8) & 255], kIQ2XXSGrid[(q >> 16) & 255],
                                    kIQ2XXSGrid[q >> 24]);
    store32(u + 32 * ib, signed_grid(grid, even_signs(a), IQ2_XXS::kOffset));
    scale[ib] = d * (0.5f + static_cast<float>(a >> 28));
  }
}

/// Sixteen 4-bit scales s as factor * (0.5 + s).
static inline void iq2_scales(const uint8_t* packed, float factor, float* scale) {
  for (int ib = 0; ib < 8; ++ib) {
    scale[2 * ib] = factor * (0.5f + static_cast<float>(packed[ib] & 15));
    scale[2 * ib + 1] = factor * (0.5f + static_cast<float>(packed[ib] >> 4));
  }
}

static inline void decode(const BlockIQ2_XS& b, uint8_t* u, float* scale, float*) {
  for (int ib = 0; ib < 8; ++ib) {
    uint16_t q[4];
    _mm_storeu_si64(q, _mm_loadu_si64(&b.qs[4 * ib]));
    const __m256i grid =
        four_words(kIQ2XSGrid[q[0] & 511], kIQ2XSGrid[q[1] & 511], kIQ2XSGrid[q[2] & 511], kIQ2XSGrid[q[3] & 511]);
    const __m256i signs = four_words(kSignBytes[kEvenSigns[q[0] >> 9]], kSignBytes[kEvenSigns[q[1] >> 9]],
                                     kSignBytes[kEvenSigns[q[2] >> 9]], kSignBytes[kEvenSigns[q[3] >> 9]]);
    store32(u + 32 * ib, signed_grid(grid, signs, IQ2_XS::kOffset));
  }
  iq2_scales(b.scales, half_to_float(b.d) * 0.25f, scale);
}

static inline void decode(const BlockIQ2_S& b, uint8_t* u, float* scale, float*) {
  for (int ib = 0; ib < 8; ++ib) {
    const uint8_t* q = b.qs + 4 * ib;
    const uint32_t h = b.qh[ib];
    const __m256i grid = four_words(kIQ2SGrid[q[0] | (h & 3) << 8], kIQ2SGrid[q[1] | (h & 12) << 6],
                                    kIQ2SGrid[q[2] | (h & 48) << 4], kIQ2SGrid[q[3] | (h & 192) << 2]);
    store32(u + 32 * ib, signed_grid(grid, plain_signs(b.signs + 4 * ib), IQ2_S::kOffset));
  }
  iq2_scales(b.scales, half_to_float(b.d) * 0.25f, scale);
}

static inline void decode(const BlockIQ3_XXS& b, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(b.d) * 0.5f;
  for (int ib = 0; ib < 8; ++ib) {
    const uint8_t* q = b.qs + 8 * ib;
    uint32_t grid[8];
    for (int k = 0; k < 8; ++k) grid[k] = kIQ3XXSGrid[q[k]];
    const uint32_t a = load_u32(&b.signs_scale[ib]);
    store32(u + 32 * ib, signed_grid(load32(grid), even_signs(a), IQ3_XXS::kOffset));
    scale[ib] = d * (0.5f + static_cast<float>(a >> 28));
  }
}

static inline void decode(const BlockIQ3_S& b, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const uint8_t* q = b.qs + 8 * ib;
    const uint32_t h = b.qh[ib];
    uint32_t grid[8];
    for (int k = 0; k < 8; ++k) grid[k] = kIQ3SGrid[q[k] | ((h >> k) & 1) << 8];
    store32(u + 32 * ib, signed_grid(load32(grid), plain_signs(b.signs + 4 * ib), IQ3_S::kOffset));
    scale[ib] = d * static_cast<float>(1 + 2 * ((b.scales[ib / 2] >> (4 * (ib & 1))) & 15));
  }
}

/// u = 8 * grid + delta + offset, delta = +1 or -1 (an eighth of the grid's step), per group: what iq1_points leave.
static inline uint64_t iq1_delta(bool negative) { return negative ? 0 : 0x0202020202020202; }

static inline void decode(const BlockIQ1_S& b, uint8_t* u, float* scale, float*) {
  const float d = half_to_float(b.d) * 0.125f;
  for (int ib = 0; ib < 8; ++ib) {
    const uint8_t* q = b.qs + 4 * ib;
    const uint32_t h = b.qh[ib];
    const __m256i grid =
        four_words(kGridCodes.iq1_points[q[0] | (h & 7) << 8], kGridCodes.iq1_points[q[1] | (h & 0x38) << 5],
                   kGridCodes.iq1_points[q[2] | (h & 0x1c0) << 2], kGridCodes.iq1_points[q[3] | (h & 0xe00) >> 1]);
    store32(u + 32 * ib,
            _mm256_or_si256(grid, _mm256_set1_epi64x(static_cast<long long>(iq1_delta((h & 0x8000) != 0)))));
    scale[ib] = d * static_cast<float>(2 * ((h >> 12) & 7) + 1);
  }
}

static inline void decode(const BlockIQ1_M& b, uint8_t* u, float* scale, float*) {
  uint16_t w[4];
  _mm_storeu_si64(w, _mm_loadu_si64(b.scales));
  const uint32_t d_bits = w[0] >> 12 | (w[1] >> 8 & 0xf0u) | (w[2] >> 4 & 0xf00u) | (w[3] & 0xf000u);
  const float d = half_to_float(static_cast<uint16_t>(d_bits)) * 0.125f;
  for (int ib = 0; ib < 8; ++ib) {
    const uint8_t* q = b.qs + 4 * ib;
    const uint32_t h0 = b.qh[2 * ib], h1 = b.qh[2 * ib + 1];
    const __m256i grid =
        four_words(kGridCodes.iq1_points[q[0] | (h0 & 7) << 8], kGridCodes.iq1_points[q[1] | (h0 & 0x70) << 4],
                   kGridCodes.iq1_points[q[2] | (h1 & 7) << 8], kGridCodes.iq1_points[q[3] | (h1 & 0x70) << 4]);
    const __m256i delta = four_words(iq1_delta((h0 & 8) != 0), iq1_delta((h0 & 0x80) != 0), iq1_delta((h1 & 8) != 0),
                                     iq1_delta((h1 & 0x80) != 0));
    store32(u + 32 * ib, _mm256_or_si256(grid, delta));
    const uint32_t s = static_cast<uint32_t>(w[ib / 2]) >> (6 * (ib & 1));
    scale[2 * ib] = d * static_cast<float>(2 * (s & 7) + 1);
    scale[2 * ib + 1] = d * static_cast<float>(2 * ((s >> 3) & 7) + 1);
  }
}

}  // namespace fathom::cpu
