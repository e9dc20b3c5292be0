// Integer matrix product row by row: how one or two columns are multiplied, where the speed of memory is what counts.
//
// A panel (panel.h) reads 16 rows side by side; here a row is one stream from end to end, as the hardware's prefetchers
// like it, and weights go from memory to the multiplication through registers. The price is sums across lanes, which
// more columns would pay again, each of them.
//
// A stretch is 16 blocks of 32 elements of a row. Its products leave one vector of int32 with a lane for each block,
// and scale and minimum follow lane by lane; the results of 16 rows are transposed, and each row's blocks are added in
// order. Operation by operation this is the arithmetic that panel.h describes: both give the same bits.
// Everything is static: this header is compiled for AVX-512 only.
#pragma once

#include "cpu/avx512/row_formats.h"

namespace fathom::cpu::avx512 {

/// Blocks of 32 of a row that are taken at a time: rows of up to 8192 elements (V3's have 7168) are read in one go.
static constexpr int kPieceBlocks = 256;
static constexpr int kRowsTogether = 16;
/// Weights are fetched this far ahead.
static constexpr int64_t kFetchAheadBytes = 4096;

/// A column's activations of a piece, as the rows meet them.
struct RowColumn {
  alignas(64) uint8_t q[kPieceBlocks * 32];  ///< in the format's order
  alignas(64) float d[kPieceBlocks];
  alignas(64) uint32_t s[2][kPieceBlocks];  ///< as ActBlock has them
  alignas(64) float t[kRowsTogether][kPieceBlocks];

  template <Order kOrder> void load(const uint8_t* act, int n_blocks) {
    for (int b = 0; b < n_blocks; ++b, act += sizeof(ActBlock)) {
      const int at = 512 * (b / 16);
      _mm_store_si128(reinterpret_cast<__m128i*>(q + at + place(kOrder, b % 16, 0)), load16(act));
      _mm_store_si128(reinterpret_cast<__m128i*>(q + at + place(kOrder, b % 16, 1)), load16(act + 16));
      __builtin_memcpy(d + b, act + offsetof(ActBlock, d), sizeof(float));
      __builtin_memcpy(s[0] + b, act + offsetof(ActBlock, s), sizeof(uint32_t));
      __builtin_memcpy(s[1] + b, act + offsetof(ActBlock, s) + 4, sizeof(uint32_t));
    }
  }
};

/// Sums of groups of four lanes of four vectors: group L of z[j] to lane 4 L + j.
static inline __m512i sum_fours(const __m512i* z) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[0], z[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(z[2], z[3]), _mm512_unpackhi_epi32(z[2], z[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/// t = the stretch's blocks times one column.
template <typename Format>
static inline __attribute__((always_inline)) void multiply_stretch(const Stretch<Format>& w, const RowColumn& c,
                                                                   int block, float* t) {
  constexpr Order kOrder = RowFormat<Format>::kOrder;
  constexpr int kScales = 32 / Format::kSub;
  const uint8_t* q = c.q + 32 * block;
  __m512i sum[2];
  if constexpr (kOrder == Order::kHalvesApart && kScales == 1) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      z[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.u[2 * j], _mm512_load_si512(q + 128 * j));
      z[j] = _mm512_dpbusd_epi32(z[j], w.u[2 * j + 1], _mm512_load_si512(q + 128 * j + 64));
    }
    sum[0] = _mm512_permutexvar_epi32(_mm512_load_si512(kFourBlockLanes.at), sum_fours(z));
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
    if (Format::kOffset != 0) sum[h] = _mm512_add_epi32(sum[h], _mm512_load_si512(c.s[h] + block));
    const __m512 i = _mm512_cvtepi32_ps(sum[h]);
    v = h == 0 ? _mm512_mul_ps(i, w.scale[0]) : _mm512_fmadd_ps(i, w.scale[h], v);
    if constexpr (Format::kHasMin) v = _mm512_fmadd_ps(w.min[h], _mm512_load_ps(c.s[h] + block), v);
  }
  _mm512_store_ps(t, v);
}

/// acc + the blocks of 16 rows in order; lane i is row i.
static inline __m512 add_blocks(const RowColumn& c, int n_blocks, __m512 acc) {
  for (int b = 0; b < n_blocks; b += 4) {
    __m512i in[4], out[4];
    const uint8_t* rows[kRowsTogether];
#pragma GCC unroll 16
    for (int i = 0; i < kRowsTogether; ++i) rows[i] = reinterpret_cast<const uint8_t*>(c.t[i] + b);
    load_rows16(rows, 0, in);
    transpose4(in, out);
    const int n = n_blocks - b < 4 ? n_blocks - b : 4;
    if (n == 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        acc = _mm512_fmadd_ps(_mm512_castsi512_ps(out[j]), _mm512_set1_ps(c.d[b + j]), acc);
      }
    } else {
      for (int j = 0; j < n; ++j) {
        acc = _mm512_fmadd_ps(_mm512_castsi512_ps(out[j]), _mm512_set1_ps(c.d[b + j]), acc);
      }
    }
  }
  return acc;
}

template <typename Format, int kColumns> static void multiply_rows(const MatmulTask& task) {
  constexpr int kPerBlock = Format::kElements / 32;
  constexpr int kStretchBytes = kStretchBlocks / kPerBlock * Format::kBytes;
  RowColumn columns[kColumns];
  const auto* w = reinterpret_cast<const uint8_t*>(task.w);
  const int64_t n_blocks = task.k / 32, stride = task.row_stride_bytes;
  for (int64_t first = 0; first < n_blocks; first += kPieceBlocks) {
    const int n = static_cast<int>(n_blocks - first < kPieceBlocks ? n_blocks - first : kPieceBlocks);
    const int64_t offset = first / kPerBlock * Format::kBytes, piece_bytes = n / kPerBlock * Format::kBytes;
    for (int c = 0; c < kColumns; ++c) {
      columns[c].template load<RowFormat<Format>::kOrder>(
          static_cast<const uint8_t*>(task.act_rows[c]) + first * static_cast<int64_t>(sizeof(ActBlock)), n);
    }
    // What is fetched while a row is multiplied: the same place of a later row, after the last one the next piece's or
    // the next call's first rows.
    const int64_t rows_ahead = (kFetchAheadBytes + piece_bytes - 1) / piece_bytes;
    const uint8_t* const after = first + n < n_blocks     ? w + task.row_begin * stride + offset + piece_bytes
                                 : task.next_w != nullptr ? reinterpret_cast<const uint8_t*>(task.next_w)
                                                          : w + task.row_begin * stride;
    for (int64_t group = task.row_begin; group < task.row_end; group += kRowsTogether) {
      const int n_rows = static_cast<int>(task.row_end - group < kRowsTogether ? task.row_end - group : kRowsTogether);
      for (int i = 0; i < n_rows; ++i) {
        const int64_t row = group + i, later = row + rows_ahead;
        const uint8_t* p = w + row * stride + offset;
        const uint8_t* ahead =
            later < task.row_end ? w + later * stride + offset : after + (later - task.row_end) * stride;
        for (int b = 0; b < n; b += kStretchBlocks, p += kStretchBytes, ahead += kStretchBytes) {
#pragma GCC unroll 16
          for (int line = 0; line < kStretchBytes; line += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T0);
          }
          Stretch<Format> s;
          if (n - b >= kStretchBlocks) {
            RowFormat<Format>::load(p, s);
          } else {
            alignas(64) uint8_t rest[kStretchBytes] = {};
            __builtin_memcpy(rest, p, static_cast<size_t>((n - b) / kPerBlock * Format::kBytes));
            RowFormat<Format>::load(rest, s);
          }
#pragma GCC unroll 4
          for (int c = 0; c < kColumns; ++c) multiply_stretch<Format>(s, columns[c], b, columns[c].t[i] + b);
        }
      }
      const auto mask = static_cast<__mmask16>(n_rows == 16 ? 0xffff : (1 << n_rows) - 1);
      for (int c = 0; c < kColumns; ++c) {
        float* y = task.y_rows[c] + group;
        const __m512 acc = first == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, y);
        _mm512_mask_storeu_ps(y, mask, add_blocks(columns[c], n, acc));
      }
    }
  }
}

/// Rows for the columns for which they are faster than panels, measured on Zen 5 (tests/bench/kernels): a second one
/// pays where unpacking is either very cheap or what everything waits for.
template <typename Format> static void matmul(const MatmulTask& task) {
  if (task.n_cols == 1) return multiply_rows<Format, 1>(task);
  if constexpr (RowFormat<Format>::kTwoColumns) {
    if (task.n_cols == 2) return multiply_rows<Format, 2>(task);
  }
  multiply_panels<Format>(task);
}

}  // namespace fathom::cpu::avx512
