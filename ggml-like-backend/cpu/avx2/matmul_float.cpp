// Matrix kernels of F32, F16 and BF16 weights: dot products in f32.
//
// Each result is one chain of fused multiply-adds over vectors of 8 along k, the last one padded with zeros, and one sum across
// lanes at the end, whatever the tile shape.
#include <immintrin.h>

#include "cpu/isa_tables.h"

namespace fathom::cpu::avx2 {
namespace {

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
void multiply_tile(const uint8_t* w, int64_t stride, int64_t k, const float* const* act, float* const* y) {
  using Stored = typename T::Stored;
  __m256 acc[kR][kC];
  for (int r = 0; r < kR; ++r) {
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
  for (int r = 0; r < kR; ++r) {
    for (int c = 0; c < kC; ++c) y[c][r] = sum_lanes(acc[r][c]);
  }
}

/// Rows row..row+kR, every column.
template <typename T, int kR>
void multiply_rows(const MatmulTask& task, int64_t row, int column_begin, int column_end) {
  const uint8_t* w = reinterpret_cast<const uint8_t*>(task.w) + row * task.row_stride_bytes;
  for (int column = column_begin; column < column_end;) {
    const int width = column_end - column < 3 ? column_end - column : 3;
    const float* act[3];
    float* y[3];
    for (int c = 0; c < width; ++c) {
      act[c] = static_cast<const float*>(task.act_rows[column + c]);
      y[c] = task.y_rows[column + c] + row;
    }
    switch (width) {
      case 1: multiply_tile<T, kR, 1>(w, task.row_stride_bytes, task.k, act, y); break;
      case 2: multiply_tile<T, kR, 2>(w, task.row_stride_bytes, task.k, act, y); break;
      case 3: multiply_tile<T, kR, 3>(w, task.row_stride_bytes, task.k, act, y); break;
    }
    column += width;
  }
}

template <typename T>
void matmul_float(const MatmulTask& task) {
  // Activations of a pass should stay in the second-level cache while the rows go by.
  constexpr int64_t kPassBytes = 256 << 10;
  const int64_t fitting = kPassBytes / (task.k * 4 + 1);
  const int pass = fitting >= 3 ? static_cast<int>(fitting / 3 * 3) : 3;
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

}  // namespace fathom::cpu::avx2
