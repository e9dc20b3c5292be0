// Integer matrix product row by row: how one or two columns are multiplied, where the speed of memory is what counts.
//
// A panel (panel.h) reads 8 or 16 rows side by side; here a row is one stream from end to end, as the hardware's
// prefetchers like it, and weights go from memory to the multiplication through registers. The price is sums across
// lanes, which more columns would pay again, each of them.
//
// The products of a stretch of blocks leave one vector with a lane for each block, and scale and minimum follow lane by
// lane; the results of several rows are transposed, and each row's blocks are added in order. Operation by operation
// this is the arithmetic that avx512/panel.h describes: both give the same bits.
//
// Written once for all instruction sets: FATHOM_ISA/rows.h includes this after defining what it works with
// (kStretchBlocks, kRowsTogether, RowFormat, Stretch, place_activations, multiply_stretch, add_blocks).

namespace fathom::cpu::FATHOM_ISA {

/// Blocks of 32 of a row that are taken at a time: rows of up to 8192 elements (V3's have 7168) are read in one go.
static constexpr int kPieceBlocks = 256;
/// Weights are fetched this far ahead: at 30 GB/s 0.27 microseconds. Half of it costs 7 to 12 percent, twice of it
/// gains nothing.
static constexpr int64_t kFetchAheadBytes = 8192;

/// A column's activations of a piece, as the rows meet them, and its products with some rows.
struct RowColumn {
  alignas(64) uint8_t q[kPieceBlocks * 32];  ///< in the format's order
  alignas(64) float d[kPieceBlocks];
  alignas(64) uint32_t s[2][kPieceBlocks];  ///< as ActBlock has them
  alignas(64) float t[kRowsTogether][kPieceBlocks];

  template <typename Format> void load(const uint8_t* act, int n_blocks) {
    place_activations<Format>(act, n_blocks, q);
    for (int b = 0; b < n_blocks; ++b, act += sizeof(ActBlock)) {
      __builtin_memcpy(d + b, act + offsetof(ActBlock, d), sizeof(float));
      __builtin_memcpy(s[0] + b, act + offsetof(ActBlock, s), sizeof(uint32_t));
      __builtin_memcpy(s[1] + b, act + offsetof(ActBlock, s) + 4, sizeof(uint32_t));
    }
  }
};

template <typename Format, int kColumns> static void multiply_rows(const MatmulTask& task) {
  constexpr int kPerBlock = Format::kElements / 32;
  constexpr int kStretchBytes = kStretchBlocks / kPerBlock * Format::kBytes;
  RowColumn columns[kColumns];
  alignas(64) uint8_t rest[kStretchBytes] = {};  // what is left of a row, filled up with zeros
  const auto* w = reinterpret_cast<const uint8_t*>(task.w);
  const int64_t n_blocks = task.k / 32, stride = task.row_stride_bytes;
  for (int64_t first = 0; first < n_blocks; first += kPieceBlocks) {
    const int n = static_cast<int>(n_blocks - first < kPieceBlocks ? n_blocks - first : kPieceBlocks);
    const int64_t offset = first / kPerBlock * Format::kBytes, piece_bytes = n / kPerBlock * Format::kBytes;
    for (int c = 0; c < kColumns; ++c) {
      columns[c].template load<Format>(
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
            __builtin_memcpy(rest, p, static_cast<size_t>((n - b) / kPerBlock * Format::kBytes));
            RowFormat<Format>::load(rest, s);
          }
#pragma GCC unroll 4
          for (int c = 0; c < kColumns; ++c) {
            RowColumn& x = columns[c];
            multiply_stretch<Format>(s, x.q + 32 * b, x.s[0] + b, x.s[1] + b, x.t[i] + b);
          }
        }
      }
      for (int c = 0; c < kColumns; ++c) {
        add_blocks(columns[c].t[0], kPieceBlocks, columns[c].d, n, first == 0, task.y_rows[c] + group, n_rows);
      }
    }
  }
}

/// Whether a row fills its stretches. A short one's would be mostly zeros: with AVX-512 a row of 256 elements of Q8_0
/// takes three times as long as in a panel.
static inline bool fills_stretches(int64_t k) {
  const int64_t n_blocks = k / 32;
  return n_blocks >= kStretchBlocks && (n_blocks % kStretchBlocks == 0 || n_blocks >= 4 * kStretchBlocks);
}

/// Rows for as many columns as they are faster for, measured on Zen 5 (tests/bench/kernels); else panels.
template <typename Format> static void matmul(const MatmulTask& task) {
  if (!fills_stretches(task.k)) return multiply_panels<Format>(task);
  if constexpr (RowFormat<Format>::kColumns >= 1) {
    if (task.n_cols == 1) return multiply_rows<Format, 1>(task);
  }
  if constexpr (RowFormat<Format>::kColumns >= 2) {
    if (task.n_cols == 2) return multiply_rows<Format, 2>(task);
  }
  multiply_panels<Format>(task);
}

}  // namespace fathom::cpu::FATHOM_ISA
