// Matrix kernels of F32, F16 and BF16 weights: dot products in f32.
//
// Each result is one chain of fused multiply-adds over vectors of 8 along k, the last one padded with zeros, and one
// sum across lanes at the end, whatever the tile shape.
#include <immintrin.h>

#include "cpu/isa_tables.h"
#include "cpu/prefetcher.h"

namespace fathom::cpu::avx2 {
namespace {

/// Rows and columns of a tile: rows x columns accumulators, and few loads for each product.
constexpr int kRows = 4;
constexpr int kColumns = 3;

struct F32 {
  using Stored = float;
  static __m256 load(const Stored* p) { return _mm256_loadu_ps(p); }
};
struct F16 {
  using Stored = uint16_t;
  static __m256 load(const Stored* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
};
struct BF16 {
  using Stored = uint16_t;
  static __m256 load(const Stored* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
};

float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <typename T, int kR, int kC>
void multiply_tile(const uint8_t* w, int64_t stride, int64_t k, const float* const* act, float* const* y,
                   Prefetcher& prefetcher) {
  using Stored = typename T::Stored;
  __m256 acc[kR][kC];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) acc[r][c] = _mm256_setzero_ps();
  }
  const auto multiply = [&](const __m256* x, const auto& row_at) {
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const __m256 v = T::load(row_at(r));
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) acc[r][c] = _mm256_fmadd_ps(v, x[c], acc[r][c]);
    }
  };
  __m256 x[kC];
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    // Of the rows after these, as many bytes as are read here.
    prefetcher.lines<kR* static_cast<int>(sizeof(Stored)) * 8 / 64>();
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) x[c] = _mm256_loadu_ps(act[c] + i);
    multiply(x, [&](int r) { return reinterpret_cast<const Stored*>(w + r * stride) + i; });
  }
  if (i < k) {
    const auto left = static_cast<size_t>(k - i);
    Stored tail[kR][8] = {};
    for (int r = 0; r < kR; ++r) {
      __builtin_memcpy(tail[r], w + r * stride + static_cast<size_t>(i) * sizeof(Stored), left * sizeof(Stored));
    }
    for (int c = 0; c < kC; ++c) {
      alignas(32) float padded[8] = {};
      __builtin_memcpy(padded, act[c] + i, left * sizeof(float));
      x[c] = _mm256_load_ps(padded);
    }
    multiply(x, [&](int r) { return tail[r]; });
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) y[c][r] = sum_lanes(acc[r][c]);
  }
}

/// Rows row..row+kR of the columns [begin, end).
template <typename T, int kR>
void multiply_rows(const MatmulTask& task, int64_t row, int begin, int end, const uint8_t* ahead) {
  Prefetcher prefetcher;
  prefetcher.restart(ahead);
  const uint8_t* w = reinterpret_cast<const uint8_t*>(task.w) + row * task.row_stride_bytes;
  for (int column = begin; column < end;) {
    const int width = end - column < kColumns ? end - column : kColumns;
    const float* act[kColumns];
    float* y[kColumns];
    for (int c = 0; c < width; ++c) {
      act[c] = static_cast<const float*>(task.act_rows[column + c]);
      y[c] = task.y_rows[column + c] + row;
    }
    switch (width) {
      case 1: multiply_tile<T, kR, 1>(w, task.row_stride_bytes, task.k, act, y, prefetcher); break;
      case 2: multiply_tile<T, kR, 2>(w, task.row_stride_bytes, task.k, act, y, prefetcher); break;
      case 3: multiply_tile<T, kR, 3>(w, task.row_stride_bytes, task.k, act, y, prefetcher); break;
    }
    column += width;
    prefetcher.hold();  // the first tile has prefetched the next rows
  }
}

template <typename T> void matmul_float(const MatmulTask& task) {
  // Activations of a pass should stay in the second-level cache while the rows go by.
  constexpr int64_t kPassBytes = 256 << 10;
  const int64_t fitting = kPassBytes / (task.k * 4 + 1) / kColumns * kColumns;
  const int pass = fitting >= kColumns ? static_cast<int>(fitting) : kColumns;
  for (int begin = 0; begin < task.n_cols; begin += pass) {
    const int end = task.n_cols - begin < pass ? task.n_cols : begin + pass;
    int64_t row = task.row_begin;
    for (; row + kRows <= task.row_end; row += kRows) {
      const std::byte* here = task.w + row * task.row_stride_bytes;
      const bool last = row + 2 * kRows > task.row_end;
      const std::byte* ahead = !last                    ? here + kRows * task.row_stride_bytes
                               : task.next_w != nullptr ? task.next_w
                                                        : here;
      multiply_rows<T, kRows>(task, row, begin, end, reinterpret_cast<const uint8_t*>(ahead));
    }
    for (; row < task.row_end; ++row) {
      multiply_rows<T, 1>(task, row, begin, end,
                          reinterpret_cast<const uint8_t*>(task.w) + row * task.row_stride_bytes);
    }
  }
}

}  // namespace

const MatmulKernel f32 = {{ActKind::kF32, 0}, nullptr, matmul_float<F32>};
const MatmulKernel f16 = {{ActKind::kF32, 0}, nullptr, matmul_float<F16>};
const MatmulKernel bf16 = {{ActKind::kF32, 0}, nullptr, matmul_float<BF16>};

}  // namespace fathom::cpu::avx2
