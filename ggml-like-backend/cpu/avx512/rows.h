// Stretches of 16 blocks of 32 elements: what row_products.h works with on AVX-512. Blocks come in the order that is
// cheapest to unpack (row_formats.h), and the products of a stretch leave one vector of int32 with a lane for each.
// Everything is static: this header is compiled for AVX-512 only.
#pragma once

#include "cpu/avx512/row_formats.h"

namespace fathom::cpu::avx512 {

static constexpr int kRowsTogether = 16;

/// Activations of n_blocks blocks in the format's order.
template <typename Format> static inline void place_activations(const uint8_t* act, int n_blocks, uint8_t* q) {
  constexpr Order kOrder = RowFormat<Format>::kOrder;
  constexpr auto kStride = static_cast<int>(sizeof(ActBlock));
  if constexpr (is_across(kOrder)) {
    const __m512i across = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (int first = 0; first < n_blocks; first += kStretchBlocks) {
      for (int v = 0; v < 2; ++v, q += 256) {
        const uint8_t* halves[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const int half = half_block(kOrder, v, i), block = first + half / 2;
          halves[i] = act + (block < n_blocks ? block : n_blocks - 1) * kStride + half % 2 * 16;
        }
        __m512i in[4], out[4];
        load_rows16(halves, 0, in);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) in[j] = _mm512_shuffle_epi8(in[j], across);
        transpose4(in, out);
#pragma GCC unroll 4
        for (int e = 0; e < 4; ++e) store(q + 64 * e, out[e]);
      }
    }
  } else {
    for (int b = 0; b < n_blocks; ++b, act += kStride) {
      uint8_t* to = q + b / 16 * 512;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) __builtin_memcpy(to + place(kOrder, b % 16, i), act + 8 * i, 8);
    }
  }
}

/// Sums of groups of four lanes of four vectors: group L of z[j] to lane 4 L + j.
static inline __m512i sum_fours(const __m512i* z) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[0], z[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(z[2], z[3]), _mm512_unpackhi_epi32(z[2], z[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/// Even or odd lanes of each 128-bit quarter: two of a, then two of b.
static inline __m512i evens(__m512i a, __m512i b) {
  return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
}
static inline __m512i odds(__m512i a, __m512i b) {
  return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xdd));
}

/// t = the stretch's blocks times one column's: activation bytes, and s of ActBlock as two vectors.
template <typename Format>
static inline __attribute__((always_inline)) void multiply_stretch(const Stretch<Format>& w, const uint8_t* q,
                                                                   const uint32_t* s0, const uint32_t* s1, float* t) {
  constexpr Order kOrder = RowFormat<Format>::kOrder;
  constexpr int kScales = 32 / Format::kSub;
  const uint32_t* const s[2] = {s0, s1};
  __m512i sum[2];
  if constexpr (kOrder == Order::kHalvesApart && kScales == 1) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      z[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.u[2 * j], _mm512_load_si512(q + 128 * j));
      z[j] = _mm512_dpbusd_epi32(z[j], w.u[2 * j + 1], _mm512_load_si512(q + 128 * j + 64));
    }
    sum[0] = _mm512_permutexvar_epi32(_mm512_load_si512(kFourBlockLanes.at), sum_fours(z));
  } else if constexpr (kOrder == Order::kPairs) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      z[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.u[2 * j], _mm512_load_si512(q + 128 * j));
      z[j] = _mm512_dpbusd_epi32(z[j], w.u[2 * j + 1], _mm512_load_si512(q + 128 * j + 64));
    }
    const __m512i low = _mm512_add_epi32(evens(z[0], z[1]), odds(z[0], z[1]));
    const __m512i high = _mm512_add_epi32(evens(z[2], z[3]), odds(z[2], z[3]));
    sum[0] = _mm512_permutex2var_epi32(low, _mm512_load_si512(kHalfLanes<kOrder, 0>.at), high);
    sum[1] = _mm512_permutex2var_epi32(low, _mm512_load_si512(kHalfLanes<kOrder, 1>.at), high);
  } else if constexpr (is_across(kOrder)) {
    __m512i z[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      z[v] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int j = 4 * v; j < 4 * v + 4; ++j) z[v] = _mm512_dpbusd_epi32(z[v], w.u[j], _mm512_load_si512(q + 64 * j));
    }
    sum[0] = evens(z[0], z[1]), sum[1] = odds(z[0], z[1]);
    if (kScales == 1) sum[0] = _mm512_add_epi32(sum[0], sum[1]);
    if (kOrder == Order::kAcrossTwos) {
      sum[0] = _mm512_permutexvar_epi32(_mm512_load_si512(kTwoBlockLanes.at), sum[0]);
    }
  } else {
    __m512i z[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      z[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.u[j], _mm512_load_si512(q + 64 * j));
    }
    const __m512i low = sum_fours(z), high = sum_fours(z + 4);
    sum[0] = _mm512_permutex2var_epi32(low, _mm512_load_si512(kHalfLanes<kOrder, 0>.at), high);
    sum[1] = _mm512_permutex2var_epi32(low, _mm512_load_si512(kHalfLanes<kOrder, 1>.at), high);
    if (kScales == 1) sum[0] = _mm512_add_epi32(sum[0], sum[1]);
  }
  __m512 v;
#pragma GCC unroll 2
  for (int h = 0; h < kScales; ++h) {
    if (Format::kOffset != 0) sum[h] = _mm512_add_epi32(sum[h], _mm512_load_si512(s[h]));
    const __m512 i = _mm512_cvtepi32_ps(sum[h]);
    v = h == 0 ? _mm512_mul_ps(i, w.scale[0]) : _mm512_fmadd_ps(i, w.scale[h], v);
    if constexpr (Format::kHasMin) v = _mm512_fmadd_ps(w.min[h], _mm512_load_ps(s[h]), v);
  }
  _mm512_store_ps(t, v);
}

/// y[i] += the blocks t[i] * d of 16 rows, in order; starts from zero if `first`; n_rows of them are there.
static inline void add_blocks(const float* t, int64_t t_stride, const float* d, int n_blocks, bool first, float* y,
                              int n_rows) {
  const auto mask = static_cast<__mmask16>(n_rows == 16 ? 0xffff : (1 << n_rows) - 1);
  __m512 acc = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, y);
  for (int b = 0; b < n_blocks; b += 4) {
    __m512i in[4], out[4];
    const uint8_t* rows[kRowsTogether];
#pragma GCC unroll 16
    for (int i = 0; i < kRowsTogether; ++i) rows[i] = reinterpret_cast<const uint8_t*>(t + i * t_stride + b);
    load_rows16(rows, 0, in);
    transpose4(in, out);
    const int n = n_blocks - b < 4 ? n_blocks - b : 4;
    if (n == 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        acc = _mm512_fmadd_ps(_mm512_castsi512_ps(out[j]), _mm512_set1_ps(d[b + j]), acc);
      }
    } else {
      for (int j = 0; j < n; ++j) {
        acc = _mm512_fmadd_ps(_mm512_castsi512_ps(out[j]), _mm512_set1_ps(d[b + j]), acc);
      }
    }
  }
  _mm512_mask_storeu_ps(y, mask, acc);
}

}  // namespace fathom::cpu::avx512

#define FATHOM_ISA avx512
#include "cpu/row_products.h"
#undef FATHOM_ISA
