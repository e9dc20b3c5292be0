// Matrix kernels of F32, F16 and BF16 weights: dot products in f32.
//
// Each result is one chain of fused multiply-adds over vectors of 16 along k (the last one masked) and one sum across
// lanes at the end, whatever the tile shape.
#include <immintrin.h>

#include "cpu/isa_tables.h"
#include "cpu/prefetcher.h"

namespace fathom::cpu::avx512 {
namespace {

/// Rows and columns of a tile: rows x columns accumulators, and few loads for each product.
constexpr int kRows = 8;
constexpr int kColumns = 3;

struct F32 {
  static constexpr int kBytes = 4;
  static __m512 load(const uint8_t* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static __m512 load(const uint8_t* p, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p)); }
};
struct BF16 {
  static constexpr int kBytes = 2;
  static __m512 load(const uint8_t* p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
  }
};

template <typename T, int kR, int kC>
void multiply_tile(const uint8_t* w, int64_t stride, int64_t k, const float* const* act, float* const* y,
                   Prefetcher& prefetcher) {
  __m512 acc[kR][kC];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, __mmask16 m) {
    __m512 x[kC];
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) x[c] = _mm512_maskz_loadu_ps(m, act[c] + i);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const __m512 v = T::load(w + r * stride + i * T::kBytes, m);
#pragma GCC unroll 8
      for (int c = 0; c < kC; ++c) acc[r][c] = _mm512_fmadd_ps(v, x[c], acc[r][c]);
    }
  };
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    prefetcher.lines<kR * T::kBytes / 4>();  // of the rows after these, as many bytes as are read here
    step(i, 0xffff);
  }
  if (i < k) step(i, static_cast<__mmask16>((1 << (k - i)) - 1));
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kC; ++c) y[c][r] = _mm512_reduce_add_ps(acc[r][c]);
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
  constexpr int64_t kPassBytes = 512 << 10;
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

}  // namespace fathom::cpu::avx512
