// Integer matrix product over panels: the core of all quantized AVX-512 kernels.
//
// A panel is 16 weight rows of a run of k, unpacked to unsigned bytes: vector g holds for each of the 16 rows its bytes
// 4g..4g+3, so one vpdpbusd with four broadcast activation bytes advances 16 dot products, and the accumulators' lanes
// are rows. Scales are vectors over rows too, so nothing is ever summed across lanes.
//
// For each block of 32 along k, exactly, in this order, whatever the tile shape:
//   i   = sum(u * q) - offset * sum(q)                                (int32, exact)
//   t   = i * scale            (two halves: t = i1 * scale1 + (i0 * scale0), fused)
//   t   = min * sum(q) + t     (types with a minimum; fused; twice with two halves)
//   acc = t * d + acc          (fused)
// Everything is static: this header is compiled for AVX-512 only.
#pragma once

#include <immintrin.h>

#include "cpu/prefetcher.h"
#include "cpu/weight_formats.h"

namespace fathom::cpu::avx512 {

/// Panels of one call: up to kRowGroups groups of 16 rows by kChunk elements of k. 40 to 48 KiB a group stay in the
/// second-level cache, from where they come as fast as they are needed, while the columns pass: most rows fit whole, so
/// that each result is stored once.
static constexpr int kChunkBlocks = 64;
static constexpr int kChunk = kChunkBlocks * 32;
/// With fewer than kManyColumns, unpacking takes a good part of the time and fetches the weights that follow, most of
/// them; a quarter of a row's length at a time then leaves them room in the first-level cache. With more, the
/// multiplication fetches all of them, evenly, into the second.
static constexpr int kManyColumns = 32;
static constexpr int kFewColumnsBlocks = 16;
static constexpr int kRowGroups = 2;

static constexpr int kRows = 16;
static constexpr int kPanelBytes = 4 * kRows;  ///< of a vector of a panel

struct Panel {
  alignas(64) uint8_t u[kChunk / 4][kPanelBytes];
  alignas(64) float scale[kChunkBlocks * 2][kRows];  ///< per block of 32, or per half block
  alignas(64) float min[kChunkBlocks * 2][kRows];
};

/// 4 bytes of a column to all lanes.
static inline __m512i broadcast4(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm512_set1_epi32(value);
}
static inline __m512 broadcast_float(const void* p) { return _mm512_castsi512_ps(broadcast4(p)); }

/// Lines to prefetch for 32 rows by 32 elements while columns are multiplied, about a quarter of them; the rest is
/// prefetched while unpacking: for each block of the format in 16 rows, and rounded up.
template <typename Format>
static constexpr int kMultiplyLines = (Format::kBytes * 32 / Format::kElements * 32 / 64 + 2) / 4;
template <typename Format>
static constexpr int kUnpackLines = (Format::kBytes * 16 + 63) / 64 - kMultiplyLines<Format>*(Format::kElements / 32) /
                                                                          2;

/// y[c][16 r + lane] += panels[r] * act[c] over n_blocks blocks of 32; starts from zero if `first`. Fetches `lines` for
/// each block, or with kFew as the format says.
template <typename Format, int kR, int kC, bool kFew>
static inline void multiply_tile(const Panel* panels, int n_blocks, const uint8_t* const* act, float* const* y,
                                 const __mmask16* rows, bool first, Prefetcher& ahead, int lines) {
  constexpr int kHalves = 32 / Format::kSub;
  constexpr int kGroups = 8 / kHalves;
  const uint8_t* columns[kC];
  __m512 acc[kR][kC];
  for (int c = 0; c < kC; ++c) {
    columns[c] = act[c];
    for (int r = 0; r < kR; ++r)
      acc[r][c] = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows[r], y[c] + 16 * r);
  }
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t at = b * static_cast<int64_t>(sizeof(ActBlock));
    if constexpr (kFew) {
      ahead.lines<kMultiplyLines<Format>>();
    } else {
      ahead.lines_to_second(lines);
    }
    __m512 t[kR][kC];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m512i sum[kR][kC];
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) {
        const __m512i start =
            Format::kOffset != 0 ? broadcast4(columns[c] + at + offsetof(ActBlock, s) + 4 * h) : _mm512_setzero_si512();
        for (int r = 0; r < kR; ++r) sum[r][c] = start;
      }
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) {
        const int group = h * kGroups + g;
        __m512i u[kR];
#pragma GCC unroll 2
        for (int r = 0; r < kR; ++r) u[r] = _mm512_load_si512(panels[r].u[b * 8 + group]);
#pragma GCC unroll 8
        for (int c = 0; c < kC; ++c) {
          const __m512i q = broadcast4(columns[c] + at + 4 * group);
#pragma GCC unroll 2
          for (int r = 0; r < kR; ++r) sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], u[r], q);
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < kR; ++r) {
        const __m512 scale = _mm512_load_ps(panels[r].scale[b * kHalves + h]);
#pragma GCC unroll 8
        for (int c = 0; c < kC; ++c) {
          const __m512 i = _mm512_cvtepi32_ps(sum[r][c]);
          t[r][c] = h == 0 ? _mm512_mul_ps(i, scale) : _mm512_fmadd_ps(i, scale, t[r][c]);
          if constexpr (Format::kHasMin) {
            const __m512 min = _mm512_load_ps(panels[r].min[b * kHalves + h]);
            t[r][c] = _mm512_fmadd_ps(min, broadcast_float(columns[c] + at + offsetof(ActBlock, s) + 4 * h), t[r][c]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) {
      const __m512 d = broadcast_float(columns[c] + at + offsetof(ActBlock, d));
#pragma GCC unroll 2
      for (int r = 0; r < kR; ++r) acc[r][c] = _mm512_fmadd_ps(t[r][c], d, acc[r][c]);
    }
  }
  for (int c = 0; c < kC; ++c) {
    for (int r = 0; r < kR; ++r) _mm512_mask_storeu_ps(y[c] + 16 * r, rows[r], acc[r][c]);
  }
}

/// All columns: tiles of almost equal width, at most kMaxC. `ahead_end`: up to where weights are fetched meanwhile.
template <typename Format, int kR, bool kFew>
static inline void multiply_columns(const Panel* panels, int n_blocks, const MatmulTask& task, int64_t row,
                                    int64_t block, const __mmask16* rows, Prefetcher& ahead, const uint8_t* ahead_end) {
  // Accumulators, sums and (with two halves) partial results of a tile must fit 32 registers.
  constexpr int kMaxC = Format::kSub == 16 ? 4 : 6;
  const int n_tiles = (task.n_cols + kMaxC - 1) / kMaxC;
  int column = 0;
  for (int tile = 0; tile < n_tiles; ++tile) {
    const int width = (task.n_cols - column) / (n_tiles - tile);
    const uint8_t* act[kMaxC];
    float* y[kMaxC];
    for (int c = 0; c < width; ++c) {
      act[c] = static_cast<const uint8_t*>(task.act_rows[column + c]) + block * static_cast<int64_t>(sizeof(ActBlock));
      y[c] = task.y_rows[column + c] + row;
    }
    const bool first = block == 0;
    const int64_t lines_left = (ahead_end - ahead.at()) / 64, steps_left = int64_t{n_tiles - tile} * n_blocks;
    const int lines = lines_left <= 0 ? 0 : static_cast<int>((lines_left + steps_left - 1) / steps_left);
    switch (width) {
      case 1: multiply_tile<Format, kR, 1, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines); break;
      case 2: multiply_tile<Format, kR, 2, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines); break;
      case 3: multiply_tile<Format, kR, 3, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines); break;
      case 4: multiply_tile<Format, kR, 4, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines); break;
      case 5:
        if constexpr (kMaxC >= 5)
          multiply_tile<Format, kR, 5, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines);
        break;
      case 6:
        if constexpr (kMaxC >= 6)
          multiply_tile<Format, kR, 6, kFew>(panels, n_blocks, act, y, rows, first, ahead, lines);
        break;
    }
    column += width;
    if (kFew) ahead.hold();  // the first tile has prefetched this chunk's share
  }
  if (kFew) ahead.go_on();
}

/// Weight rows of a group; rows past the end repeat the last one, their results are not stored.
struct RowGroup {
  const uint8_t* rows[16];
  __mmask16 mask;
};

template <typename Format> static inline void multiply_panels(const MatmulTask& task) {
  Panel panels[kRowGroups];
  const auto n_blocks = static_cast<int>(task.k / 32);
  constexpr int kPerBlock = Format::kElements / 32;
  const auto* w = reinterpret_cast<const uint8_t*>(task.w);
  const auto* next = reinterpret_cast<const uint8_t*>(task.next_w);
  // With few columns memory is what counts: a tile and the next one, being prefetched, should fit the first-level
  // cache.
  const int tile_rows = task.n_cols <= 4 ? 16 : 16 * kRowGroups;
  const bool few = task.n_cols < kManyColumns;
  const int chunk = few ? kFewColumnsBlocks : kChunkBlocks;
  Prefetcher prefetcher;
  // The first tile at once; where the last call announced it, the lines are there and this costs little.
  prefetcher.restart(w + task.row_begin * task.row_stride_bytes);
  const int64_t first_rows = task.row_end - task.row_begin < tile_rows ? task.row_end - task.row_begin : tile_rows;
  for (int64_t at = 0; at < first_rows * task.row_stride_bytes; at += 512) prefetcher.lines<8>();
  for (int64_t row = task.row_begin; row < task.row_end; row += tile_rows) {
    const int64_t left = task.row_end - row;
    const uint8_t* here = w + row * task.row_stride_bytes;
    prefetcher.restart(left > tile_rows ? here + tile_rows * task.row_stride_bytes : next != nullptr ? next : here);
    const uint8_t* const ahead_begin = prefetcher.at();
    RowGroup groups[kRowGroups];
    __mmask16 masks[kRowGroups];
    for (int r = 0; r < kRowGroups; ++r) {
      const int64_t n = left - 16 * r;
      masks[r] = groups[r].mask = static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
      for (int i = 0; i < 16; ++i) {
        const int64_t at = 16 * r + i < left ? row + 16 * r + i : task.row_end - 1;
        groups[r].rows[i] = w + at * task.row_stride_bytes;
      }
    }
    const int n_groups = left > 16 && tile_rows > 16 ? 2 : 1;
    for (int block = 0; block < n_blocks; block += chunk) {
      const int n = n_blocks - block < chunk ? n_blocks - block : chunk;
      const int64_t offset = static_cast<int64_t>(block / kPerBlock) * Format::kBytes;
      if (!few) prefetcher.hold();
      for (int r = 0; r < n_groups; ++r) unpack(Format{}, groups[r].rows, offset, n / kPerBlock, panels[r], prefetcher);
      prefetcher.go_on();
      const uint8_t* ahead_end = ahead_begin + (block + n) * tile_rows * task.row_stride_bytes / n_blocks;
      if (n_groups == 1) {
        multiply_columns<Format, 1, true>(panels, n, task, row, block, masks, prefetcher, ahead_end);
      } else if (few) {
        multiply_columns<Format, 2, true>(panels, n, task, row, block, masks, prefetcher, ahead_end);
      } else {
        multiply_columns<Format, 2, false>(panels, n, task, row, block, masks, prefetcher, ahead_end);
      }
    }
  }
}

}  // namespace fathom::cpu::avx512
