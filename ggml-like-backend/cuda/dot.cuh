// Products of a few weight rows with a few activation rows by the lanes of a warp: the heart of every kernel for small
// steps.
//
// 8, 16 or 32 neighbouring lanes (of plain weights also several warps) share kRows weight rows. Each takes every 8th,
// 16th or 32nd chunk of 32 weights of all of them, so that the activations it loads serve kRows rows, and neighbouring
// lanes load neighbouring 16 bytes; in the end the lanes' sums meet in a tree of shuffles. A column's sum is therefore
// formed in an order that depends on k and on the number of lanes alone: the same bits alone and in any batch. Bytes
// under way: a lane asks for the 16 (Q8_0: 32) bytes of kRows rows at once; 32 warps on an SM keep 32 KiB under way,
// and 24 are needed to cover 0.7 us of latency at 36 GB/s an SM (4.8 TB/s, 132 SMs).
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

/// silu(min(gate, clamp)) * max(-clamp, min(up, clamp)); what is no number stays none.
FATHOM_DEVICE float gated(float gate, float up, float clamp) {
  gate = gate > clamp ? clamp : gate;
  up = up > clamp ? clamp : up < -clamp ? -clamp : up;
  return gate / (1.0F + expf(-gate)) * up;
}

namespace detail {

FATHOM_DEVICE int4 load_q16(const int8_t* p) { return *reinterpret_cast<const int4*>(p); }

FATHOM_DEVICE int dot16(const int* w, const int4& a, int sum) {
  return __dp4a(w[3], a.w, __dp4a(w[2], a.z, __dp4a(w[1], a.y, __dp4a(w[0], a.x, sum))));
}

/// The 32 activations that a chunk meets, and what of them does not depend on the row: a word for each run.
struct ActChunk {
  int4 q[2];
  float d[2];
  int start[2];     ///< of the sums of products: -kOffset * sum of q
  float weight[2];  ///< of the minima: d * sum of q
};

/// at: the first of the block's activations, a multiple of 32.
template <typename Format>
FATHOM_DEVICE ActChunk load_act_chunk(const int8_t* q, const ActScale* scales, uint32_t at, int sub) {
  ActChunk a;
  const int first = Format::first(sub);
  at += static_cast<uint32_t>(first);
  q += at;
  scales += at / 32;
  a.q[0] = load_q16(q);
  a.q[1] = load_q16(q + Format::kSecond);
  uint32_t sums[2];
  if constexpr (Format::kSecond == 16) {  // both runs in one block of activations
    const uint2 s = *reinterpret_cast<const uint2*>(scales);
    a.d[0] = a.d[1] = __uint_as_float(s.x);
    sums[0] = s.y << 16, sums[1] = s.y;
  } else {
    constexpr int kApart = Format::kSecond / 32;
    const uint2 s0 = *reinterpret_cast<const uint2*>(scales), s1 = *reinterpret_cast<const uint2*>(scales + kApart);
    const int side = first / 16 % 2 != 0 ? 0 : 16;
    a.d[0] = __uint_as_float(s0.x), a.d[1] = __uint_as_float(s1.x);
    sums[0] = s0.y << side, sums[1] = s1.y << side;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int sum = static_cast<int>(sums[h]) >> 16;
    a.start[h] = -Format::kOffset * sum;
    a.weight[h] = Format::kHasMin ? a.d[h] * static_cast<float>(sum) : 0.0F;
  }
  return a;
}

/// Before several columns meet a chunk, whose number is not known: or the compiler takes it apart again for each.
template <typename Format> FATHOM_DEVICE void take_apart_once(Chunk& w) {
#pragma unroll
  for (int& q : w.q) keep_value(q);
  if constexpr (Format::kHasMin && Format::kTwoScales) keep_value(w.min[0]), keep_value(w.min[1]);
}

/// sum + the product of a chunk with its activations.
template <typename Format> FATHOM_DEVICE float add_chunk(const Chunk& w, const ActChunk& a, float sum) {
  const int p0 = dot16(w.q, a.q[0], a.start[0]), p1 = dot16(w.q + 4, a.q[1], a.start[1]);
  if constexpr (Format::kSecond == 16) {
    const int p = Format::kTwoScales ? w.scale[0] * p0 + w.scale[1] * p1 : w.scale[0] * (p0 + p1);
    sum = fmaf(a.d[0] * w.d, static_cast<float>(p), sum);
  } else {
    const float products =
        fmaf(a.d[1], static_cast<float>(w.scale[1] * p1), a.d[0] * static_cast<float>(w.scale[0] * p0));
    sum = fmaf(w.d, products, sum);
  }
  if constexpr (Format::kHasMin) {
    const float minima = fmaf(a.weight[1], w.min[1], a.weight[0] * w.min[0]);
    sum = fmaf(-w.dmin, minima, sum);
  }
  return sum;
}

}  // namespace detail

/// Sum over the lanes of a warp that share rows; every lane gets it.
FATHOM_DEVICE float sum_over_lanes(float v, int lanes) {
  for (int offset = min(lanes, 32) / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

/// sum[r][c] = weight rows[r] . activation row row_of(c) for c < n_columns; n_columns >= 1. lane: of `lanes`. The whole
/// warp calls it.
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
    if (k % kPer == 0 && x.stride % 4 == 0 && reinterpret_cast<uintptr_t>(x.x) % 16 == 0) {
      constexpr int kAtOnce = kColumns == 1 ? 16 / kPer : 1;  // chunks whose loads are under way together
      for (int first = lane * kPer; first < k; first += lanes * kPer * kAtOnce) {
        uint4 w[kAtOnce][kRows];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int e = first + i * lanes * kPer;
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            w[i][r] = e < k ? detail::load16(rows[r] + e * (16 / kPer)) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (kColumns > 1 && c >= n_columns) continue;
          const float* from = x.x + row_of(c) * x.stride;
          float4 v[kAtOnce][kPer / 4];
#pragma unroll
          for (int i = 0; i < kAtOnce * kPer / 4; ++i) {
            const int part = i / (kPer / 4), e = first + part * lanes * kPer + i % (kPer / 4) * 4;
            v[part][i % (kPer / 4)] = e < k ? *reinterpret_cast<const float4*>(from + e) : make_float4(0, 0, 0, 0);
          }
#pragma unroll
          for (int i = 0; i < kAtOnce * kPer / 4; ++i) {
            const int part = i / (kPer / 4), at = i % (kPer / 4);
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              float& total = sum[r][c];
              total = fmaf(Format::element(w[part][r], 4 * at), v[part][at].x, total);
              total = fmaf(Format::element(w[part][r], 4 * at + 1), v[part][at].y, total);
              total = fmaf(Format::element(w[part][r], 4 * at + 2), v[part][at].z, total);
              total = fmaf(Format::element(w[part][r], 4 * at + 3), v[part][at].w, total);
            }
          }
        }
      }
    } else {  // behind the row's end the weights are padding and might be NaN
      for (int e = lane * kPer; e < k; e += lanes * kPer) {
        uint4 w[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) w[r] = detail::load16(rows[r] + e * (16 / kPer));
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (kColumns > 1 && c >= n_columns) continue;
          const float* from = x.x + row_of(c) * x.stride + e;
#pragma unroll
          for (int i = 0; i < kPer; ++i) {
            if (e + i >= k) continue;
            const float v = from[i];
#pragma unroll
            for (int r = 0; r < kRows; ++r) sum[r][c] = fmaf(Format::element(w[r], i), v, sum[r][c]);
          }
        }
      }
    }
  } else {
    // Lanes are a multiple of a block's chunks: a lane always has the same one of them.
    const int n_blocks = k / Format::kBlock, step = lanes / Format::kChunks, sub = lane % Format::kChunks;
    int block = lane / Format::kChunks;
    if constexpr (kColumns == 1) {
      const int64_t at = row_of(0) * x.stride;
      const int8_t* q = x.q + at;
      const ActScale* scales = x.scales + at / 32;
      for (; block + step < n_blocks; block += 2 * step) {  // the loads of two steps at once
        Chunk w[2][kRows];
        detail::ActChunk a[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) w[i][r] = Format::load(rows[r], n_blocks, block + i * step, sub, grids);
          a[i] =
              detail::load_act_chunk<Format>(q, scales, static_cast<uint32_t>(block + i * step) * Format::kBlock, sub);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[r][0] = detail::add_chunk<Format>(w[i][r], a[i], sum[r][0]);
        }
      }
    }
    uint32_t begin[kColumns];  // of the columns, in activations: a step of few rows has less than 2^32
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      begin[c] = static_cast<uint32_t>(row_of(min(c, n_columns - 1))) * static_cast<uint32_t>(x.stride);
    for (; block < n_blocks; block += step) {
      Chunk w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = Format::load(rows[r], n_blocks, block, sub, grids);
      if constexpr (kColumns > 1) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) detail::take_apart_once<Format>(w[r]);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (kColumns > 1 && c >= n_columns) continue;
        const detail::ActChunk a = detail::load_act_chunk<Format>(
            x.q, x.scales, begin[c] + static_cast<uint32_t>(block) * Format::kBlock, sub);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r][c] = detail::add_chunk<Format>(w[r], a, sum[r][c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (kColumns == 1 || c < n_columns) sum[r][c] = sum_over_lanes(sum[r][c], lanes);
    }
  }
}

/// Chunks of a row: how much work there is to share among lanes.
constexpr int chunks_of_row(DType dtype, int k) {
  const int per = weight_layout(dtype).block_elements == 1 ? 16 / weight_layout(dtype).block_bytes : 32;
  return (k + per - 1) / per;
}

/// Lanes that share a pair of n_rows rows: as few as keep 4096 warps busy (31 on each of an H100's 132 SMs), so that a
/// lane has several loads under way, but `most` where rows are few and latency counts. Depends on the matrix alone,
/// never on the step.
constexpr int lanes_for(int n_rows, int n_chunks, int most) {
  int lanes = most;
  while (lanes > 8 && (n_chunks <= lanes / 2 || static_cast<int64_t>(n_rows) * (lanes / 2) / 64 >= 4096)) lanes /= 2;
  return lanes;
}

}  // namespace fathom::cuda
