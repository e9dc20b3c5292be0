// Operations that treat each row by itself: row choice, sum, norm. Every kernel may start before its
// predecessor has ended, and waits for that end before it touches activations.
#include "cuda/norm.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

FATHOM_KERNEL(kThreads, 1) take_rows_kernel(const float* x, const int* rows, float* out, int n) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < n) out[static_cast<int64_t>(blockIdx.y) * n + i] = x[static_cast<int64_t>(rows[blockIdx.y]) * n + i];
}

/// Block (chunk, row) of out [T, n_a + n_b].
FATHOM_KERNEL(kThreads, 1) concat_rows_kernel(const float* a, const float* b, float* out, int n_a, int n_b) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int64_t t = blockIdx.y;
  if (i < n_a + n_b) out[t * (n_a + n_b) + i] = i < n_a ? a[t * n_a + i] : b[t * n_b + i - n_a];
}

FATHOM_KERNEL(kThreads, 1) add_kernel(const float* a, const float* b, float* out, int64_t n) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = a[i] + b[i];
}

/// A block for each row.
FATHOM_KERNEL(kNormShares, 1)
rms_norm_kernel(const float* x, const float* weight, float* out, int n, float eps, int8_t* q, ActScale* scales) {
  FATHOM_SHARED(float, scratch, kNormShares / 32);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.x, at = row * n;
  norm_row(x + at, weight, out + at, n, eps, q == nullptr ? nullptr : q + at, scales + at / 32, scratch);
}

/// In double: at position 100,000 a float angle would be off by 0.004 radians.
FATHOM_KERNEL(kThreads, 1)
rope_table_kernel(const int* positions, const float* frequencies, float* out, int n_pairs, int n) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= n) return;
  const double angle = static_cast<double>(positions[i / n_pairs]) * static_cast<double>(frequencies[i % n_pairs]);
  out[2 * i] = static_cast<float>(cos(angle));
  out[2 * i + 1] = static_cast<float>(sin(angle));
}

}  // namespace

void take_rows(const TakeRowsArgs& a, const OpContext& c) {
  const int n = static_cast<int>(a.x.dim(1));
  launch_overlapped(take_rows_kernel, dim3(blocks_for(n, kThreads), static_cast<unsigned>(a.rows.dim(0))), kThreads, 0,
                    c.stream, a.x.as<const float>(), a.rows.as<const int>(), a.out.as<float>(), n);
}

void concat_rows(const ConcatRowsArgs& a, const OpContext& c) {
  const int n_a = static_cast<int>(a.a.dim(1)), n_b = static_cast<int>(a.b.dim(1));
  launch_overlapped(concat_rows_kernel, dim3(blocks_for(n_a + n_b, kThreads), static_cast<unsigned>(a.out.dim(0))),
                    kThreads, 0, c.stream, a.a.as<const float>(), a.b.as<const float>(), a.out.as<float>(), n_a, n_b);
}

void add(const AddArgs& a, const OpContext& c) {
  const int64_t n = a.out.shape.n_elements();
  launch_overlapped(add_kernel, blocks_for(n, kThreads), kThreads, 0, c.stream, a.a.as<const float>(),
                    a.b.as<const float>(), a.out.as<float>(), n);
}

void rms_norm(const RmsNormArgs& a, const OpContext& c) { rms_norm_quantized(a, {}, c); }

void rms_norm_quantized(const RmsNormArgs& a, const QuantizedRows& quantized, const OpContext& c) {
  const int n = static_cast<int>(a.x.dim(1));
  FATHOM_CHECK(quantized.q == nullptr || (n % 32 == 0 && quantized.k == n), "rows of a multiple of 32");
  FATHOM_CHECK(reinterpret_cast<uintptr_t>(a.weight.data) % 16 == 0, "the weights of a norm are aligned");
  const float* weight = a.weight ? a.weight.as<const float>() : nullptr;
  launch_overlapped(rms_norm_kernel, static_cast<unsigned>(a.x.dim(0)), kNormShares, 0, c.stream, a.x.as<const float>(),
                    weight, a.out.as<float>(), n, a.eps, quantized.q, quantized.scales);
}

void rope_table(const RopeTableArgs& a, const OpContext& c) {
  const int n_pairs = static_cast<int>(a.frequencies.dim(0)), n = static_cast<int>(a.positions.dim(0)) * n_pairs;
  launch_overlapped(rope_table_kernel, blocks_for(n, kThreads), kThreads, 0, c.stream, a.positions.as<const int>(),
                    a.frequencies.as<const float>(), a.out.as<float>(), n_pairs, n);
}

}  // namespace fathom::cuda
