// Stretches of 8 blocks of 32 elements: what row_products.h works with on AVX2 and AVX-VNNI. Blocks come as the block
// decoders give them, in order, through a few lines of the first-level cache.
// Everything is static: this header is compiled for one instruction set, in the namespace FATHOM_ISA.
#pragma once

#include "cpu/avx2/unpack.h"

namespace fathom::cpu::FATHOM_ISA {

static constexpr int kStretchBlocks = 8;
static constexpr int kRowsTogether = 8;

/// Activations of n_blocks blocks in order.
template <typename Format> static inline void place_activations(const uint8_t* act, int n_blocks, uint8_t* q) {
  for (int b = 0; b < n_blocks; ++b) store(q + 32 * b, load32(act + b * static_cast<int>(sizeof(ActBlock))));
}

/// One row's stretch: vector j is block j; scales and minima with a lane for each block, two vectors where its halves
/// have their own.
template <typename Format> struct Stretch {
  __m256i u[kStretchBlocks];
  __m256 scale[32 / Format::kSub];
  __m256 min[32 / Format::kSub];
};

/// 16 numbers: those of first halves, those of second halves.
static inline void apart(const float* p, __m256* out) {
  const __m256 low = _mm256_load_ps(p), high = _mm256_load_ps(p + 8);
  const auto in_order = [](__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); };
  out[0] = in_order(_mm256_shuffle_ps(low, high, 0x88));
  out[1] = in_order(_mm256_shuffle_ps(low, high, 0xdd));
}

template <typename Format> struct RowFormat {
  /// Up to so many columns rows are faster than panels: small blocks and tables of values cost more than they gain.
  static constexpr int kColumns = Format::kElements == kSuperBlock && Format::kMaxU < 255 ? 1 : 0;

  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Format>& s) {
    constexpr int kScales = Format::kElements / Format::kSub, kCount = kStretchBlocks * 32 / Format::kElements;
    alignas(32) uint8_t u[kStretchBlocks * 32];
    alignas(32) float scale[kCount * kScales], min[kCount * kScales];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      decode(*reinterpret_cast<const typename Format::Block*>(p + i * Format::kBytes), u + i * Format::kElements,
             scale + i * kScales, min + i * kScales);
    }
    const Bytes flip = splat8(Format::kMaxU == 255 ? kFullRangeOffset ^ 128 : 0);
#pragma GCC unroll 8
    for (int j = 0; j < kStretchBlocks; ++j) {
      s.u[j] = load32(u + 32 * j);
      if constexpr (Format::kMaxU == 255) s.u[j] = bit_xor(s.u[j], flip);
    }
    if constexpr (Format::kSub == 32) {
      s.scale[0] = _mm256_load_ps(scale);
      if constexpr (Format::kHasMin) s.min[0] = _mm256_load_ps(min);
    } else {
      apart(scale, s.scale);
      if constexpr (Format::kHasMin) apart(min, s.min);
    }
  }
};

template <> struct RowFormat<Q8_0> {
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q8_0>& s) {
    const auto* blocks = reinterpret_cast<const BlockQ8_0*>(p);
    const Bytes flip = splat8(kFullRangeOffset);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = bit_xor(load32(blocks[j].qs), flip);
    __m128i d = _mm_setzero_si128();
    d = _mm_insert_epi16(d, blocks[0].d, 0), d = _mm_insert_epi16(d, blocks[1].d, 1);
    d = _mm_insert_epi16(d, blocks[2].d, 2), d = _mm_insert_epi16(d, blocks[3].d, 3);
    d = _mm_insert_epi16(d, blocks[4].d, 4), d = _mm_insert_epi16(d, blocks[5].d, 5);
    d = _mm_insert_epi16(d, blocks[6].d, 6), d = _mm_insert_epi16(d, blocks[7].d, 7);
    s.scale[0] = _mm256_cvtph_ps(d);
  }
};

/// Sums of groups of four lanes of four vectors: group L of z[j] to lane 4 L + j.
static inline __m256i sum_fours(const __m256i* z) {
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(z[0], z[1]), _mm256_unpackhi_epi32(z[0], z[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(z[2], z[3]), _mm256_unpackhi_epi32(z[2], z[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/// Products of 32 bytes as eight sums of four.
template <typename Format> static inline __m256i products(__m256i u, __m256i q) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, q);
#else
  const __m256i pairs = kSignedWeights<Format> ? _mm256_maddubs_epi16(_mm256_abs_epi8(u), _mm256_sign_epi8(q, u))
                                               : _mm256_maddubs_epi16(u, q);
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/// t = the stretch's blocks times one column's: activation bytes, and s of ActBlock as two vectors.
template <typename Format>
static inline __attribute__((always_inline)) void multiply_stretch(const Stretch<Format>& w, const uint8_t* q,
                                                                   const uint32_t* s0, const uint32_t* s1, float* t) {
  constexpr int kScales = 32 / Format::kSub;
  const uint32_t* const s[2] = {s0, s1};
  __m256i z[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) z[j] = products<Format>(w.u[j], load32(q + 32 * j));
  const __m256i low = sum_fours(z), high = sum_fours(z + 4);
  __m256i sum[2] = {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  if (kScales == 1) sum[0] = _mm256_add_epi32(sum[0], sum[1]);
  __m256 v;
#pragma GCC unroll 2
  for (int h = 0; h < kScales; ++h) {
    if (Format::kOffset != 0 && !kSignedWeights<Format>) sum[h] = _mm256_add_epi32(sum[h], load32(s[h]));
    const __m256 i = _mm256_cvtepi32_ps(sum[h]);
    v = h == 0 ? _mm256_mul_ps(i, w.scale[0]) : _mm256_fmadd_ps(i, w.scale[h], v);
    if constexpr (Format::kHasMin) {
      v = _mm256_fmadd_ps(w.min[h], _mm256_loadu_ps(reinterpret_cast<const float*>(s[h])), v);
    }
  }
  _mm256_store_ps(t, v);
}

/// y[i] += the blocks t[i] * d of 8 rows, in order; starts from zero if `first`; n_rows of them are there.
static inline void add_blocks(const float* t, int64_t t_stride, const float* d, int n_blocks, bool first, float* y,
                              int n_rows) {
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n_rows), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  __m256 acc = first ? _mm256_setzero_ps() : _mm256_maskload_ps(y, mask);
  for (int b = 0; b < n_blocks; b += 4) {
    Bytes out[4];
    const uint8_t* rows[kRowsTogether];
#pragma GCC unroll 8
    for (int i = 0; i < kRowsTogether; ++i) rows[i] = reinterpret_cast<const uint8_t*>(t + i * t_stride + b);
    transpose16(rows, 0, out);
    const int n = n_blocks - b < 4 ? n_blocks - b : 4;
    if (n == 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        acc = _mm256_fmadd_ps(_mm256_castsi256_ps(out[j]), _mm256_broadcast_ss(d + b + j), acc);
      }
    } else {
      for (int j = 0; j < n; ++j) {
        acc = _mm256_fmadd_ps(_mm256_castsi256_ps(out[j]), _mm256_broadcast_ss(d + b + j), acc);
      }
    }
  }
  _mm256_maskstore_ps(y, mask, acc);
}

}  // namespace fathom::cpu::FATHOM_ISA

#include "cpu/row_products.h"
