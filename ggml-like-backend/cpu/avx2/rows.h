// Stretches of 8 blocks of 32 elements: what row_products.h works with on AVX2 and AVX-VNNI. Blocks come in order,
// whole or in halves (row_formats.h). Everything is static: this header is compiled for one instruction set, in the
// namespace FATHOM_ISA.
#pragma once

#include "cpu/avx2/row_formats.h"

namespace fathom::cpu::FATHOM_ISA {

static constexpr int kRowsTogether = 8;

/// Activations of n_blocks blocks, as the format's vectors meet them.
template <typename Format> static inline void place_activations(const uint8_t* act, int n_blocks, uint8_t* q) {
  constexpr auto kStride = static_cast<int>(sizeof(ActBlock));
  if constexpr (RowFormat<Format>::kHalvesApart) {
    for (int b = 0; b < n_blocks; b += 2, q += 64) {
      const __m256i even = load32(act + b * kStride), odd = load32(act + (b + 1 < n_blocks ? b + 1 : b) * kStride);
      store(q, _mm256_permute2x128_si256(even, odd, 0x20));
      store(q + 32, _mm256_permute2x128_si256(even, odd, 0x31));
    }
  } else {
    for (int b = 0; b < n_blocks; ++b) store(q + 32 * b, load32(act + b * kStride));
  }
}

/// Lanes of a, b of lanes 0 and 2 summed, of 1 and 3: a's and b's in turns.
template <bool k16> static inline __m256i add_halves(__m256i a, __m256i b) {
  const __m256i low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
  return k16 ? _mm256_add_epi16(low, high) : _mm256_add_epi32(low, high);
}
/// 16 sums in 16 bits to eight in 32.
static inline __m256i widened(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }

/// How many products fit into 16 bits; 0: they are in 32, VNNI's.
#ifdef __AVXVNNI__
template <typename Format> static constexpr int kFitting = 0;
#else
template <typename Format>
static constexpr int kFitting = RowFormat<Format>::kLargest == 255 ? 1
                                                                   : 32767 / (RowFormat<Format>::kLargest * 127 * 2);
#endif

/// The sums of each half of four vectors: of vector j first halves in lane j, second halves in lane 4 + j. Sums stay in
/// 16 bits for as long as kFits of them do.
template <int kFits> static inline __attribute__((always_inline)) __m256i sum_fours(__m256i* z) {
  if (kFits == 1) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) z[j] = widened(z[j]);
  }
  __m256i a = add_halves<kFits >= 2>(z[0], z[1]), b = add_halves<kFits >= 2>(z[2], z[3]);
  if (kFits >= 2 && kFits < 4) a = widened(a), b = widened(b);
  const __m256i low = _mm256_unpacklo_epi64(a, b), high = _mm256_unpackhi_epi64(a, b);
  return kFits >= 4 ? widened(_mm256_add_epi16(low, high)) : _mm256_add_epi32(low, high);
}

/// t = the stretch's blocks times one column's: activation bytes, and s of ActBlock as two vectors.
template <typename Format>
static inline __attribute__((always_inline)) void multiply_stretch(const Stretch<Format>& w, const uint8_t* q,
                                                                   const uint32_t* s0, const uint32_t* s1, float* t) {
  constexpr int kScales = 32 / Format::kSub;
  const uint32_t* const s[2] = {s0, s1};
  constexpr int kFits = kFitting<Format>;
  __m256i z[8], sum[2];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) z[j] = RowFormat<Format>::products(w, j, q + 32 * j);
  if constexpr (RowFormat<Format>::kHalvesApart) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i first = z[2 * i], second = z[2 * i + 1];
      z[i] = kFits >= 2   ? _mm256_add_epi16(first, second)
             : kFits == 1 ? _mm256_add_epi32(widened(first), widened(second))
                          : _mm256_add_epi32(first, second);
    }
    sum[0] = _mm256_permutevar8x32_epi32(sum_fours<kFits / 2>(z), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  } else {
    const __m256i low = sum_fours<kFits>(z), high = sum_fours<kFits>(z + 4);
    sum[0] = _mm256_permute2x128_si256(low, high, 0x20), sum[1] = _mm256_permute2x128_si256(low, high, 0x31);
    if (kScales == 1) sum[0] = _mm256_add_epi32(sum[0], sum[1]);
  }
  __m256 v;
#pragma GCC unroll 2
  for (int h = 0; h < kScales; ++h) {
    if (RowFormat<Format>::kAddsOffset) sum[h] = _mm256_add_epi32(sum[h], load32(s[h]));
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
  if (n_rows == kRowsTogether) {  // a masked store is slow on Zen 2 and 3
    _mm256_storeu_ps(y, acc);
  } else {
    _mm256_maskstore_ps(y, mask, acc);
  }
}

}  // namespace fathom::cpu::FATHOM_ISA

#include "cpu/row_products.h"
