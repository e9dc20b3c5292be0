// Products of a few weight rows with a few activation rows by the lanes of a warp: the heart of every kernel for small
// steps.
//
// 8, 16 or 32 neighbouring lanes share kRows weight rows. Each takes every 8th, 16th or 32nd chunk of 32 weights of all
// of them, so that the activations it loads serve kRows rows, and neighbouring lanes load neighbouring 16 bytes; in the
// end the lanes' sums meet in a tree of shuffles. A column's sum is therefore formed in an order that depends on k and
// on the number of lanes alone: the same bits alone and in any batch. Bytes under way: a lane asks for the 16 (Q8_0:
// 32) bytes of kRows rows at once; 32 warps on an SM keep 32 KiB under way, and 24 are needed to cover 0.7 us of
// latency at 36 GB/s an SM (4.8 TB/s, 132 SMs).
#pragma once

#include "cuda/formats.cuh"
#include "cuda/matmul_kernels.h"

namespace fathom::cuda {

/// Column c of a product is row first + c * step of the activations, or row list[c].
struct StridedRows {
  int first, step;
  FATHOM_DEVICE int operator()(int c) const { return first + c * step; }
};
struct ListedRows {
  const int* list;
  FATHOM_DEVICE int operator()(int c) const { return list[c]; }
};

namespace detail {

FATHOM_DEVICE int4 load_q16(const int8_t* p) { return *reinterpret_cast<const int4*>(p); }

FATHOM_DEVICE int dot16(const int* w, const int4& a) {
  return __dp4a(w[3], a.w, __dp4a(w[2], a.z, __dp4a(w[1], a.y, __dp4a(w[0], a.x, 0))));
}

/// sum + the product of a chunk with its 32 activations.
template <typename Format>
FATHOM_DEVICE float add_chunk(const Chunk& w, const int4& a0, const int4& a1, const ActScale& s0, const ActScale& s1,
                              int half, float sum) {
  const int i0 = dot16(w.q, a0), i1 = dot16(w.q + 4, a1);
  if constexpr (Format::kSecond == 16) {  // both runs in one block of activations
    if constexpr (!Format::kTwoScales) {
      const int total = s0.sum[0] + s0.sum[1];
      const float products = static_cast<float>(i0 + i1 - Format::kOffset * total);
      if constexpr (Format::kHasMin)
        return fmaf(s0.d, fmaf(w.scale[0], products, w.min[0] * static_cast<float>(total)), sum);
      return fmaf(s0.d * w.scale[0], products, sum);
    } else {
      static_assert(!Format::kHasMin);
      const float p0 = static_cast<float>(i0 - Format::kOffset * s0.sum[0]),
                  p1 = static_cast<float>(i1 - Format::kOffset * s0.sum[1]);
      return fmaf(s0.d, fmaf(w.scale[1], p1, w.scale[0] * p0), sum);
    }
  } else {
    const int sum0 = half != 0 ? s0.sum[1] : s0.sum[0], sum1 = half != 0 ? s1.sum[1] : s1.sum[0];
    float p0 = w.scale[0] * static_cast<float>(i0 - Format::kOffset * sum0),
          p1 = w.scale[1] * static_cast<float>(i1 - Format::kOffset * sum1);
    if constexpr (Format::kHasMin) {
      p0 = fmaf(w.min[0], static_cast<float>(sum0), p0);
      p1 = fmaf(w.min[1], static_cast<float>(sum1), p1);
    }
    return fmaf(s1.d, p1, fmaf(s0.d, p0, sum));
  }
}

}  // namespace detail

/// Sum over the lanes that share rows; every lane gets it.
FATHOM_DEVICE float sum_over_lanes(float v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

/// sum[r][c] = weight rows[r] . activation row row_of(c) for c < n_columns. lane: of `lanes`. The whole warp calls it.
template <typename Format, int kRows, int kColumns, typename RowOf>
FATHOM_DEVICE void dot_rows(const uint8_t* const (&rows)[kRows], int k, int lane, int lanes, const ActRows& x,
                            const RowOf& row_of, int n_columns, const std::byte* grids, float (&sum)[kRows][kColumns]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[r][c] = 0;
  }
  if constexpr (Format::kIsFloat) {
    constexpr int kPer = Format::kPerChunk;
    const bool in_fours = k % 4 == 0 && x.stride % 4 == 0 && reinterpret_cast<uintptr_t>(x.x) % 16 == 0;
    for (int e = lane * kPer; e < k; e += lanes * kPer) {
      uint4 w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = detail::load16(rows[r] + e * (16 / kPer));
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (c >= n_columns) continue;
        const float* from = x.x + row_of(c) * x.stride + e;
#pragma unroll
        for (int i = 0; i < kPer; i += 4) {
          float4 v = make_float4(0, 0, 0, 0);
          if (in_fours && e + i < k) {
            v = *reinterpret_cast<const float4*>(from + i);
          } else {
            if (e + i < k) v.x = from[i];
            if (e + i + 1 < k) v.y = from[i + 1];
            if (e + i + 2 < k) v.z = from[i + 2];
            if (e + i + 3 < k) v.w = from[i + 3];
          }
          // Behind the row's end the weights are padding and might be NaN.
          const int n = min(4, k - e - i);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (n > 0) sum[r][c] = fmaf(Format::element(w[r], i), v.x, sum[r][c]);
            if (n > 1) sum[r][c] = fmaf(Format::element(w[r], i + 1), v.y, sum[r][c]);
            if (n > 2) sum[r][c] = fmaf(Format::element(w[r], i + 2), v.z, sum[r][c]);
            if (n > 3) sum[r][c] = fmaf(Format::element(w[r], i + 3), v.w, sum[r][c]);
          }
        }
      }
    }
  } else {
    const int n_chunks = k / 32, n_blocks = k / Format::kBlock;
#pragma unroll(kColumns == 1 ? 2 : 1)
    for (int chunk = lane; chunk < n_chunks; chunk += lanes) {
      Chunk w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = Format::load(rows[r], n_blocks, chunk, grids);
      const int e0 = Format::first(chunk), e1 = e0 + Format::kSecond;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (c >= n_columns) continue;
        const int64_t at = row_of(c) * x.stride;
        const int4 a0 = detail::load_q16(x.q + at + e0), a1 = detail::load_q16(x.q + at + e1);
        const ActScale* scales = x.scales + at / 32;
        const ActScale s0 = scales[e0 / 32];
        ActScale s1 = s0;
        if constexpr (Format::kSecond != 16) s1 = scales[e1 / 32];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          sum[r][c] = detail::add_chunk<Format>(w[r], a0, a1, s0, s1, e0 / 16 % 2, sum[r][c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (c < n_columns) sum[r][c] = sum_over_lanes(sum[r][c], lanes);
    }
  }
}

/// Asks for the weights that `lanes` lanes are about to read, while an earlier kernel still runs.
template <typename Format, int kRows>
FATHOM_DEVICE void prefetch_rows(const uint8_t* const (&rows)[kRows], int k, int lane, int lanes) {
  constexpr int kLine = 128;
  const int64_t bytes = weight_row_bytes(Format::kDType, k);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int64_t at = lane * kLine; at < bytes; at += lanes * kLine) prefetch_l2(rows[r] + at);
  }
}

/// Chunks of a row: how much work there is to share among lanes.
constexpr int chunks_of_row(DType dtype, int k) {
  const int per = weight_layout(dtype).block_elements == 1 ? 16 / weight_layout(dtype).block_bytes : 32;
  return (k + per - 1) / per;
}

/// Lanes that share a pair of n_rows rows: as few as keep 4096 warps busy (31 on each of an H100's 132 SMs), so that a
/// lane has several loads under way, but all 32 where rows are few and latency counts. Depends on the matrix alone,
/// never on the step.
constexpr int lanes_for(int n_rows, int n_chunks) {
  int lanes = 32;
  while (lanes > 8 && (n_chunks <= lanes / 2 || static_cast<int64_t>(n_rows) * (lanes / 2) / 64 >= 4096)) lanes /= 2;
  return lanes;
}

}  // namespace fathom::cuda
