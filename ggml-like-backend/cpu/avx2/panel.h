// Integer matrix product over panels: the core of all quantized AVX2 kernels, with and without AVX-VNNI.
//
// A panel is 8 weight rows of a run of k, unpacked to bytes: vector g holds for each of the 8 rows its bytes 4g..4g+3,
// so multiplying with four broadcast activation bytes advances 8 dot products, and the accumulators' lanes are rows.
// The arithmetic, block by block, is that of avx512/panel.h, operation by operation: both give the same bits.
// Everything is static: this header is compiled for one instruction set, in the namespace FATHOM_ISA of the file that
// includes it.
#pragma once

#include <immintrin.h>

#include "cpu/prefetcher.h"
#include "cpu/weight_formats.h"

namespace fathom::cpu::FATHOM_ISA {

/// Panels of one call: 32 rows by kChunk elements of k, 16 KiB of weights.
static constexpr int kChunkBlocks = 16;
static constexpr int kChunk = kChunkBlocks * 32;
static constexpr int kRowGroups = 4;

static constexpr int kRows = 8;
static constexpr int kPanelBytes = 4 * kRows;  ///< of a vector of a panel

struct Panel {
  /// Without VNNI formats with kMaxU of 255 keep the signed weight u - 128.
  alignas(64) uint8_t u[kChunk / 4][kPanelBytes];
  alignas(64) float scale[kChunkBlocks * 2][kRows];
  alignas(64) float min[kChunkBlocks * 2][kRows];
};

/// Lines to prefetch for 8 rows by 32 elements while columns are multiplied, about a quarter of them; the rest is
/// prefetched while unpacking: for each block of the format in 8 rows, and rounded up.
template <typename Format>
static constexpr int kMultiplyLines = (Format::kBytes * 32 / Format::kElements * kRows / 64 + 2) / 4;
template <typename Format>
static constexpr int kUnpackLines = (Format::kBytes * kRows + 63) / 64 - kMultiplyLines<Format>*(Format::kElements /
                                                                                                 32);

static inline __m256i broadcast4(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm256_set1_epi32(value);
}
static inline __m256 broadcast_float(const void* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm256_set1_ps(value);
}

#ifdef __AVXVNNI__
template <typename Format> static constexpr bool kSignedWeights = false;

/// sum[c] += u * q over kGroups groups of four bytes, as int32 per row.
template <typename Format, int kGroups, int kC>
static inline void multiply_groups(const uint8_t (*u)[32], const uint8_t* const* columns, int64_t at, __m256i* sum) {
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(u[g]));
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) sum[c] = _mm256_dpbusd_avx_epi32(sum[c], w, broadcast4(columns[c] + at + 4 * g));
  }
}
#else
/// How many products of two pairs u * q fit into 16 bits; 0: not even one, the weights are multiplied as signed bytes.
template <typename Format> static constexpr int kDepth = Format::kMaxU == 255 ? 0 : 32767 / (Format::kMaxU * 127 * 2);
template <typename Format> static constexpr bool kSignedWeights = kDepth<Format> == 0;

/// sum[c] += u * q over kGroups groups of four bytes, as int32 per row.
template <typename Format, int kGroups, int kC>
static inline void multiply_groups(const uint8_t (*u)[32], const uint8_t* const* columns, int64_t at, __m256i* sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kSignedWeights<Format>) {
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(u[g]));
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) {
        const __m256i q = _mm256_sign_epi8(broadcast4(columns[c] + at + 4 * g), w);
        sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, q), ones));
        asm("" : "+x"(sum[c]));
      }
    }
  } else {
    constexpr int kRun = kDepth<Format> < kGroups ? (kDepth<Format> >= 4 ? 4 : kDepth<Format> >= 2 ? 2 : 1) : kGroups;
#pragma GCC unroll 8
    for (int run = 0; run < kGroups; run += kRun) {
      __m256i pairs[kC];
#pragma GCC unroll 8
      for (int g = 0; g < kRun; ++g) {
        const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(u[run + g]));
#pragma GCC unroll 8
        for (int c = 0; c < kC; ++c) {
          const __m256i product = _mm256_maddubs_epi16(w, broadcast4(columns[c] + at + 4 * (run + g)));
          pairs[c] = g == 0 ? product : _mm256_add_epi16(pairs[c], product);
          asm("" : "+x"(pairs[c]));  // in this order: a tree of sums would need more registers than there are
        }
      }
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) {
        sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(pairs[c], ones));
        asm("" : "+x"(sum[c]));
      }
    }
  }
}
#endif

/// Eight weight rows; rows past the end repeat the last one, their results are not stored.
struct RowGroup {
  const uint8_t* rows[8];
  __m256i mask;
  bool whole;  ///< all eight are there

  __m256 load(const float* y) const { return whole ? _mm256_loadu_ps(y) : _mm256_maskload_ps(y, mask); }
  /// Zen 2 and 3 take a masked store apart into dozens of operations (Agner Fog, instruction tables).
  void store(float* y, __m256 x) const { whole ? _mm256_storeu_ps(y, x) : _mm256_maskstore_ps(y, mask, x); }
};

/// y[c][lane] += panel * act[c] over n_blocks blocks of 32; starts from zero if `first`.
template <typename Format, int kC>
static inline void multiply_tile(const Panel& panel, int n_blocks, const uint8_t* const* act, float* const* y,
                                 const RowGroup& group, bool first, Prefetcher& ahead) {
  constexpr int kHalves = 32 / Format::kSub;
  constexpr int kGroups = 8 / kHalves;
  const uint8_t* columns[kC];
  __m256 acc[kC];
  for (int c = 0; c < kC; ++c) {
    columns[c] = act[c];
    acc[c] = first ? _mm256_setzero_ps() : group.load(y[c]);
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t at = b * static_cast<int64_t>(sizeof(ActBlock));
    ahead.lines<kMultiplyLines<Format>>();
    __m256 t[kC];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m256i sum[kC];
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) {
        sum[c] = Format::kOffset != 0 && !kSignedWeights<Format>
                     ? broadcast4(columns[c] + at + offsetof(ActBlock, s) + 4 * h)
                     : _mm256_setzero_si256();
      }
      multiply_groups<Format, kGroups, kC>(panel.u + b * 8 + h * kGroups, columns, at + 4 * h * kGroups, sum);
      const __m256 scale = _mm256_load_ps(panel.scale[b * kHalves + h]);
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) {
        const __m256 i = _mm256_cvtepi32_ps(sum[c]);
        t[c] = h == 0 ? _mm256_mul_ps(i, scale) : _mm256_fmadd_ps(i, scale, t[c]);
        if constexpr (Format::kHasMin) {
          t[c] = _mm256_fmadd_ps(_mm256_load_ps(panel.min[b * kHalves + h]),
                                 broadcast_float(columns[c] + at + offsetof(ActBlock, s) + 4 * h), t[c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) {
      acc[c] = _mm256_fmadd_ps(t[c], broadcast_float(columns[c] + at + offsetof(ActBlock, d)), acc[c]);
    }
  }
  for (int c = 0; c < kC; ++c) group.store(y[c], acc[c]);
}

#ifdef __AVXVNNI__
/// Columns of a tile at most. Of two row groups as well: each load of activations then serves both of them. With one
/// row group a product takes 1.25 loads, and two loads are as many as most processors have in a cycle, which multiply
/// twice; with two row groups and three columns it is 0.83.
static constexpr int kTileColumns = 3;

/// multiply_tile for two row groups.
template <typename Format, int kC>
static inline void multiply_pair(const Panel* panels, int n_blocks, const uint8_t* const* act, float* const* y,
                                 const RowGroup* groups, bool first, Prefetcher& ahead) {
  constexpr int kR = 2;
  constexpr int kHalves = 32 / Format::kSub;
  constexpr int kGroups = 8 / kHalves;
  const uint8_t* columns[kC];
  __m256 acc[kR][kC];
  for (int c = 0; c < kC; ++c) {
    columns[c] = act[c];
    for (int r = 0; r < kR; ++r) {
      acc[r][c] = first ? _mm256_setzero_ps() : groups[r].load(y[c] + 8 * r);
    }
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t at = b * static_cast<int64_t>(sizeof(ActBlock));
    ahead.lines<kMultiplyLines<Format>>();
    __m256 t[kR][kC];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m256i sum[kR][kC];
#pragma GCC unroll 4
      for (int c = 0; c < kC; ++c) {
        sum[0][c] = sum[1][c] =
            Format::kOffset != 0 ? broadcast4(columns[c] + at + offsetof(ActBlock, s) + 4 * h) : _mm256_setzero_si256();
      }
#pragma GCC unroll 8
      for (int g = h * kGroups; g < (h + 1) * kGroups; ++g) {
        __m256i w[kR];
#pragma GCC unroll 2
        for (int r = 0; r < kR; ++r) w[r] = _mm256_load_si256(reinterpret_cast<const __m256i*>(panels[r].u[8 * b + g]));
#pragma GCC unroll 4
        for (int c = 0; c < kC; ++c) {
          const __m256i q = broadcast4(columns[c] + at + 4 * g);
#pragma GCC unroll 2
          for (int r = 0; r < kR; ++r) sum[r][c] = _mm256_dpbusd_avx_epi32(sum[r][c], w[r], q);
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < kR; ++r) {
        const __m256 scale = _mm256_load_ps(panels[r].scale[b * kHalves + h]);
#pragma GCC unroll 4
        for (int c = 0; c < kC; ++c) {
          const __m256 i = _mm256_cvtepi32_ps(sum[r][c]);
          t[r][c] = h == 0 ? _mm256_mul_ps(i, scale) : _mm256_fmadd_ps(i, scale, t[r][c]);
          if constexpr (Format::kHasMin) {
            t[r][c] = _mm256_fmadd_ps(_mm256_load_ps(panels[r].min[b * kHalves + h]),
                                      broadcast_float(columns[c] + at + offsetof(ActBlock, s) + 4 * h), t[r][c]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c) {
      const __m256 d = broadcast_float(columns[c] + at + offsetof(ActBlock, d));
#pragma GCC unroll 2
      for (int r = 0; r < kR; ++r) acc[r][c] = _mm256_fmadd_ps(t[r][c], d, acc[r][c]);
    }
  }
  for (int c = 0; c < kC; ++c) {
    for (int r = 0; r < kR; ++r) groups[r].store(y[c] + 8 * r, acc[r][c]);
  }
}
#else
/// Columns of a tile at most: wider ones run out of registers. (Two row groups by two or three columns gain nothing
/// here: it is the ports that multiply bytes that are busy all the time.)
static constexpr int kTileColumns = 4;
#endif

/// All columns: tiles of almost equal width.
template <typename Format>
static inline void multiply_columns(const Panel* panels, const RowGroup* groups, int n_groups, int n_blocks,
                                    const MatmulTask& task, int64_t row, int64_t block, Prefetcher& ahead) {
  const int n_tiles = (task.n_cols + kTileColumns - 1) / kTileColumns;
  const bool first = block == 0;
  int column = 0;
  for (int tile = 0; tile < n_tiles; ++tile) {
    const int width = (task.n_cols - column) / (n_tiles - tile);
    const uint8_t* act[kTileColumns];
    for (int c = 0; c < width; ++c) {
      act[c] = static_cast<const uint8_t*>(task.act_rows[column + c]) + block * static_cast<int64_t>(sizeof(ActBlock));
    }
    int group = 0;
    float* y[kTileColumns];
#ifdef __AVXVNNI__
    for (; group + 2 <= n_groups; group += 2) {
      for (int c = 0; c < width; ++c) y[c] = task.y_rows[column + c] + row + 8 * group;
      switch (width) {
        case 1: multiply_pair<Format, 1>(panels + group, n_blocks, act, y, groups + group, first, ahead); break;
        case 2: multiply_pair<Format, 2>(panels + group, n_blocks, act, y, groups + group, first, ahead); break;
        case 3: multiply_pair<Format, 3>(panels + group, n_blocks, act, y, groups + group, first, ahead); break;
      }
    }
#endif
    for (; group < n_groups; ++group) {
      for (int c = 0; c < width; ++c) y[c] = task.y_rows[column + c] + row + 8 * group;
      const Panel& panel = panels[group];
      switch (width) {
        case 1: multiply_tile<Format, 1>(panel, n_blocks, act, y, groups[group], first, ahead); break;
        case 2: multiply_tile<Format, 2>(panel, n_blocks, act, y, groups[group], first, ahead); break;
        case 3: multiply_tile<Format, 3>(panel, n_blocks, act, y, groups[group], first, ahead); break;
        case 4:
          if constexpr (kTileColumns >= 4)
            multiply_tile<Format, 4>(panel, n_blocks, act, y, groups[group], first, ahead);
          break;
      }
    }
    column += width;
    ahead.hold();  // the first tile has prefetched this chunk's share
  }
  ahead.go_on();
}

template <typename Format> static inline void multiply_panels(const MatmulTask& task) {
  Panel panels[kRowGroups];
  const auto n_blocks = static_cast<int>(task.k / 32);
  constexpr int kPerBlock = Format::kElements / 32;
  const auto* w = reinterpret_cast<const uint8_t*>(task.w);
  const auto* next = reinterpret_cast<const uint8_t*>(task.next_w);
  // With few columns memory is what counts: a tile and the next one, being prefetched, should fit the first-level
  // cache.
  const int tile_groups = task.n_cols <= 4 ? 2 : kRowGroups;
  const int tile_rows = kRows * tile_groups;
  Prefetcher prefetcher;
  // The first tile at once; where the last call announced it, the lines are there and this costs little.
  prefetcher.restart(w + task.row_begin * task.row_stride_bytes);
  const int64_t first_rows = task.row_end - task.row_begin < tile_rows ? task.row_end - task.row_begin : tile_rows;
  for (int64_t at = 0; at < first_rows * task.row_stride_bytes; at += 512) prefetcher.lines<8>();
  for (int64_t row = task.row_begin; row < task.row_end; row += tile_rows) {
    const int64_t left = task.row_end - row;
    const uint8_t* here = w + row * task.row_stride_bytes;
    prefetcher.restart(left > tile_rows ? here + tile_rows * task.row_stride_bytes : next != nullptr ? next : here);
    RowGroup groups[kRowGroups];
    int n_groups = 0;
    for (; n_groups < tile_groups && row + 8 * n_groups < task.row_end; ++n_groups) {
      RowGroup& group = groups[n_groups];
      const int64_t first = row + 8 * n_groups;
      const int64_t n = task.row_end - first < 8 ? task.row_end - first : 8;
      group.whole = n == 8;
      group.mask =
          _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      for (int i = 0; i < 8; ++i) {
        const int64_t at = first + (i < n ? i : n - 1);
        group.rows[i] = w + at * task.row_stride_bytes;
      }
    }
    for (int block = 0; block < n_blocks; block += kChunkBlocks) {
      const int n = n_blocks - block < kChunkBlocks ? n_blocks - block : kChunkBlocks;
      const int64_t offset = static_cast<int64_t>(block / kPerBlock) * Format::kBytes;
      for (int g = 0; g < n_groups; ++g) unpack(Format{}, groups[g].rows, offset, n / kPerBlock, panels[g], prefetcher);
      multiply_columns<Format>(panels, groups, n_groups, n, task, row, block, prefetcher);
    }
  }
}

}  // namespace fathom::cpu::FATHOM_ISA
