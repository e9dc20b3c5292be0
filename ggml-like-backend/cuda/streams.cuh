// Hyper-connections: from M residual streams to a sublayer's input, with its norm where that follows, and back. M is 1,
// 2 or 4.
#pragma once

#include "cuda/norm.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {

/// Puts token t's value y of dimension d on all streams.
FATHOM_DEVICE void expand_value(const ExpandResult& e, int64_t t, int d, int width, float y) {
  const int m = e.n_streams;
  const float* post = e.mixing + t * (m + m * m);
  float x[kMostMixed];
#pragma unroll
  for (int from = 0; from < kMostMixed; ++from) x[from] = from < m ? e.streams[(t * m + from) * width + d] : 0.0F;
#pragma unroll
  for (int to = 0; to < kMostMixed; ++to) {
    if (to >= m) break;
    float sum = post[to] * y;
#pragma unroll
    for (int from = 0; from < kMostMixed; ++from) {
      if (from < m) sum = fmaf(post[m + from * m + to], x[from], sum);
    }
    e.out[(t * m + to) * width + d] = sum;
  }
}

FATHOM_DEVICE float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

/// What the coefficients of a token are made of: its products over the length of its streams.
struct StreamProducts {
  const float* products;
  const float* base;
  const float* scale;
  float r;

  FATHOM_DEVICE float operator()(int i, int part) const { return fmaf(__ldcg(products + i) * r, scale[part], base[i]); }
};

/// The mixing matrix [from][to], whose rows and columns are divided by their sums in turn. By one thread: chains are
/// shorter than through shuffles.
FATHOM_DEVICE void mix_streams(const StreamProducts& value, int m, float eps, int iterations, float* out) {
  float c[kMostMixed][kMostMixed];
#pragma unroll
  for (int i = 0; i < kMostMixed; ++i) {
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int k = 0; k < kMostMixed; ++k) {
      c[i][k] = i < m && k < m ? value(2 * m + i * m + k, 2) : -INFINITY;
      largest = fmaxf(largest, c[i][k]);
    }
#pragma unroll
    for (int k = 0; k < kMostMixed; ++k) sum += c[i][k] = i < m && k < m ? expf(c[i][k] - largest) : 0.0F;
#pragma unroll
    for (int k = 0; k < kMostMixed; ++k) c[i][k] = i < m && k < m ? c[i][k] / sum + eps : 0.0F;
  }
  auto divide_columns = [&] {
#pragma unroll
    for (int k = 0; k < kMostMixed; ++k) {
      const float sum = c[0][k] + c[1][k] + (c[2][k] + c[3][k]), by = k < m ? 1.0F / (sum + eps) : 0.0F;
#pragma unroll
      for (int i = 0; i < kMostMixed; ++i) c[i][k] *= by;
    }
  };
  divide_columns();
  for (int round = 1; round < iterations; ++round) {
#pragma unroll
    for (int i = 0; i < kMostMixed; ++i) {
      const float sum = c[i][0] + c[i][1] + (c[i][2] + c[i][3]), by = i < m ? 1.0F / (sum + eps) : 0.0F;
#pragma unroll
      for (int k = 0; k < kMostMixed; ++k) c[i][k] *= by;
    }
    divide_columns();
  }
#pragma unroll
  for (int i = 0; i < kMostMixed; ++i) {
#pragma unroll
    for (int k = 0; k < kMostMixed; ++k) {
      if (i < m && k < m) out[i * m + k] = c[i][k];
    }
  }
}

/// Token t by a whole block of at most kNormShares threads: its input, that one's norm if norm.out is there, and what
/// expands the sublayer's output. The same bits for any number of threads.
FATHOM_DEVICE void collapse_token(const CollapseByResult& task, int64_t t) {
  FATHOM_SHARED(float, scratch, kNormShares / 32);
  FATHOM_SHARED(float, pre, kMostMixed);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, step = static_cast<int>(blockDim.x);
  const int m = task.n_streams, width = task.width, n = m * width;
  const float* streams = task.streams + t * n;
  for (int share = thread; share < kNormShares; share += step) {
    float squares = 0;
#pragma unroll 8
    for (int i = 4 * share; i < n; i += 4 * kNormShares) {
      const float4 v = detail::load_four(streams, i, n);
      squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
    }
    squares = warp_sum(squares);
    if (lane == 0) scratch[share / 32] = squares;
  }
  __syncthreads();
  const float squares = warp_sum(lane < kNormShares / 32 ? scratch[lane] : 0.0F);
  const StreamProducts value{task.products + t * (task.mixing != nullptr ? (2 + m) * m : m), task.base, task.scale,
                             1.0F / sqrtf(squares / static_cast<float>(n) + task.norm_eps)};
  if (thread < m) pre[thread] = sigmoid(value(thread, 0)) + task.eps;
  __syncthreads();
  const int64_t at = t * width;
  float* out = task.out + at;
  auto input = [&](int i) {
    float sum = 0;
    for (int s = 0; s < m; ++s) sum = fmaf(pre[s], streams[s * width + i], sum);
    return sum;
  };
  const NormOfResult& norm = task.norm;
  int8_t* q = norm.quantized.q == nullptr ? nullptr : norm.quantized.q + at;
  if (norm.out != nullptr && is_normed_in_fours(width)) {
    auto four = [&](int i) {
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int s = 0; s < kMostMixed; ++s) {
        if (s >= m) break;
        const float4 x = *reinterpret_cast<const float4*>(streams + s * width + i);
        const float by = pre[s];
        sum = make_float4(fmaf(by, x.x, sum.x), fmaf(by, x.y, sum.y), fmaf(by, x.z, sum.z), fmaf(by, x.w, sum.w));
      }
      *reinterpret_cast<float4*>(out + i) = sum;
      return sum;
    };
    norm_fours(four, norm.weight, norm.out + at, width, norm.eps, q, norm.quantized.scales + at / 32, scratch);
  } else {
    for (int i = thread; i < width; i += step) out[i] = input(i);
    if (norm.out != nullptr) {
      __threadfence();  // the norm reads past this SM's cache
      __syncthreads();
      norm_row(out, norm.weight, norm.out + at, width, norm.eps, q, norm.quantized.scales + at / 32, scratch);
    }
  }
  if (task.mixing == nullptr) return;
  float* mixing = task.mixing + t * (m + m * m);
  if (thread < m) mixing[thread] = 2 * sigmoid(value(m + thread, 1));
  if (thread == 0) mix_streams(value, m, task.eps, task.iterations, mixing + m);
}

}  // namespace fathom::cuda
