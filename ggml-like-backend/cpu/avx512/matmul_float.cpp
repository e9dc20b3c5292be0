// Matrix kernels of F32, F16 and BF16 weights: dot products in f32.
//
// Each result is one chain of fused multiply-adds over vectors of 16 along k (the last one masked) and one sum across
// lanes at the end, whatever the tile shape.
#include <immintrin.h>

#include "cpu/isa_tables.h"

namespace fathom::cpu::avx512 {
namespace {

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
void multiply_tile(const uint8_t* w, int64_t stride, int64_t k, const float* const* act, float* const* y) {
  __m512 acc[kR][kC];
  for (int r = 0; r < kR; ++r) {
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
  for (; i + 16 <= k; i += 16) step(i, 0xffff);
  if (i < k) step(i, static_cast<__mmask16>((1 << (k - i)) - 1));
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c) y[c][r] = _mm512_reduce_add_ps(acc[r][c]);
  }
}

/// Rows row..row+kR, every column.
template <typename T, int kR>
void multiply_rows(const MatmulTask& task, int64_t row, int column_begin, int column_end) {
  const uint8_t* w = reinterpret_cast<const uint8_t*>(task.w) + row * task.row_stride_bytes;
  for (int column = column_begin; column < column_end;) {
    const int width = column_end - column < 4 ? column_end - column : 4;
    const float* act[4];
    float* y[4];
    for (int c = 0; c < width; ++c) {
      act[c] = static_cast<const float*>(task.act_rows[column + c]);
      y[c] = task.y_rows[column + c] + row;
    }
    switch (width) {
      case 1: multiply_tile<T, kR, 1>(w, task.row_stride_bytes, task.k, act, y); break;
      case 2: multiply_tile<T, kR, 2>(w, task.row_stride_bytes, task.k, act, y); break;
      case 3: multiply_tile<T, kR, 3>(w, task.row_stride_bytes, task.k, act, y); break;
      case 4: multiply_tile<T, kR, 4>(w, task.row_stride_bytes, task.k, act, y); break;
    }
    column += width;
  }
}

template <typename T>
void matmul_float(const MatmulTask& task) {
  // Activations of a pass should stay in the second-level cache while the rows go by.
  constexpr int64_t kPassBytes = 512 << 10;
  const int64_t fitting = kPassBytes / (task.k * 4 + 1);
  const int pass = fitting >= 4 ? static_cast<int>(fitting / 4 * 4) : 4;
  for (int column = 0; column < task.n_cols; column += pass) {
    const int end = task.n_cols - column < pass ? task.n_cols : column + pass;
    int64_t row = task.row_begin;
    for (; row + 4 <= task.row_end; row += 4) multiply_rows<T, 4>(task, row, column, end);
    for (; row < task.row_end; ++row) multiply_rows<T, 1>(task, row, column, end);
  }
}

}  // namespace

const MatmulKernel f32 = {{ActKind::kF32, 0}, nullptr, matmul_float<F32>};
const MatmulKernel f16 = {{ActKind::kF32, 0}, nullptr, matmul_float<F16>};
const MatmulKernel bf16 = {{ActKind::kF32, 0}, nullptr, matmul_float<BF16>};

}  // namespace fathom::cpu::avx512
