// Hyper-connections: from M residual streams to a sublayer's input, with its norm where that follows, and back.
#include "cuda/norm.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;

struct CollapseTask {
  const float* streams;   ///< [T, M * D]
  const float* products;  ///< [T, (2 + M) * M] or [T, M]
  const float* base;
  const float* scale;
  float* out;     ///< [T, D]
  float* mixing;  ///< [T, M + M * M] or null
  int m, d;
  float norm_eps, eps;
  int iterations;

  explicit CollapseTask(const CollapseStreamsArgs& a)
      : streams(a.streams.as<const float>()),
        products(a.products.as<const float>()),
        base(a.base.as<const float>()),
        scale(a.scale.as<const float>()),
        out(a.out.as<float>()),
        mixing(a.mixing ? a.mixing.as<float>() : nullptr),
        m(static_cast<int>(a.n_streams())),
        d(static_cast<int>(a.out.dim(1))),
        norm_eps(a.norm_eps),
        eps(a.eps),
        iterations(a.iterations) {}
};

FATHOM_DEVICE float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

/// Sum over the lanes of a row (or column) of a small matrix, lane i * m + k having element [i][k]; m is a power of
/// two.
FATHOM_DEVICE float lanes_sum(float x, int first, int end) {
  for (int offset = first; offset < end; offset *= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

/// By a warp: token t's row of mixing, and its input coefficients pre [M]. `squares`: the sum over all streams.
FATHOM_DEVICE void mix_coefficients(const CollapseTask& task, int64_t t, float squares, float* pre, int lane) {
  const int m = task.m, n = m * m;
  const float r = 1.0F / sqrtf(squares / static_cast<float>(m * task.d) + task.norm_eps);
  const float* products = task.products + t * (task.mixing != nullptr ? 2 * m + n : m);
  auto value = [&](int i, int part) { return fmaf(products[i] * r, task.scale[part], task.base[i]); };
  if (lane < m) pre[lane] = sigmoid(value(lane, 0)) + task.eps;
  if (task.mixing == nullptr) return;
  float* post = task.mixing + t * (m + n);
  if (lane < m) post[lane] = 2 * sigmoid(value(m + lane, 1));
  const float x = lane < n ? value(2 * m + lane, 2) : 0.0F;
  float largest = x;
  for (int offset = 1; offset < m; offset *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, offset));
  float c = expf(x - largest);
  c = c / lanes_sum(c, 1, m) + task.eps;
  c /= lanes_sum(c, m, n) + task.eps;
  for (int round = 1; round < task.iterations; ++round) {
    c /= lanes_sum(c, 1, m) + task.eps;
    c /= lanes_sum(c, m, n) + task.eps;
  }
  if (lane < n) post[m + lane] = c;
}

/// A block for each token. norm.out null: no norm.
FATHOM_KERNEL(kThreads, 1) collapse_streams_kernel(CollapseTask task, NormOfResult norm) {
  FATHOM_SHARED(float, scratch, kWarps);
  FATHOM_SHARED(float, pre, kMostMixed);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, n = task.m * task.d;
  const float* streams = task.streams + t * n;
  float squares = 0;
#pragma unroll 8
  for (int i = 4 * thread; i < n; i += 4 * kThreads) {
    const float4 v = detail::load_four(streams, i, n);
    squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
  }
  squares = warp_sum(squares);
  if (lane == 0) scratch[warp] = squares;
  __syncthreads();
  if (warp == 0) mix_coefficients(task, t, warp_sum(lane < kWarps ? scratch[lane] : 0.0F), pre, lane);
  __syncthreads();
  float* out = task.out + t * task.d;
  for (int i = thread; i < task.d; i += kThreads) {
    float sum = 0;
    for (int s = 0; s < task.m; ++s) sum = fmaf(pre[s], streams[s * task.d + i], sum);
    out[i] = sum;
  }
  if (norm.out == nullptr) return;
  __threadfence();  // the norm reads past this SM's cache
  __syncthreads();
  const int64_t at = t * task.d;
  norm_row(out, norm.weight, norm.out + at, task.d, norm.eps,
           norm.quantized.q == nullptr ? nullptr : norm.quantized.q + at, norm.quantized.scales + at / 32, scratch);
}
static_assert(kWarps >= kNormShares / 32, "the norm's scratch");

constexpr int kExpandThreads = 256;

/// Block (chunk of D, token).
FATHOM_KERNEL(kExpandThreads, 1)
expand_streams_kernel(const float* streams, const float* y, const float* mixing, float* out, int m, int d) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kExpandThreads + threadIdx.x);
  if (i >= d) return;
  const int64_t t = blockIdx.y;
  const float* post = mixing + t * (m + m * m);
  float x[kMostMixed];
#pragma unroll
  for (int from = 0; from < kMostMixed; ++from) x[from] = from < m ? streams[(t * m + from) * d + i] : 0.0F;
  const float own = y[t * d + i];
  for (int to = 0; to < m; ++to) {
    float sum = post[to] * own;
#pragma unroll
    for (int from = 0; from < kMostMixed; ++from) {
      if (from < m) sum = fmaf(post[m + from * m + to], x[from], sum);
    }
    out[(t * m + to) * d + i] = sum;
  }
}

}  // namespace

void collapse_streams(const CollapseStreamsArgs& a, const NormOfResult& norm, const OpContext& c) {
  launch_overlapped(collapse_streams_kernel, static_cast<unsigned>(a.out.dim(0)), kThreads, 0, c.stream,
                    CollapseTask(a), norm);
}

void expand_streams(const ExpandStreamsArgs& a, const OpContext& c) {
  const int d = static_cast<int>(a.y.dim(1));
  const dim3 grid(static_cast<unsigned>((d + kExpandThreads - 1) / kExpandThreads), static_cast<unsigned>(a.y.dim(0)));
  launch_overlapped(expand_streams_kernel, grid, kExpandThreads, 0, c.stream, a.streams.as<const float>(),
                    a.y.as<const float>(), a.mixing.as<const float>(), a.out.as<float>(),
                    static_cast<int>(a.n_streams()), d);
}

}  // namespace fathom::cuda
