// The indexer's keys on their way into the cache: layer norm, rotation, rows as they are. Each by itself, or all in one
// launch.
#include "cuda/ops.h"
#include "cuda/store_row.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

FATHOM_DEVICE float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

struct LayerNormRows {
  const float* x;
  const float* weight;
  const float* bias;
  int n;
  float eps;

  explicit LayerNormRows(const LayerNormArgs& a)
      : x(a.x.as<const float>()),
        weight(a.weight.as<const float>()),
        bias(a.bias.as<const float>()),
        n(static_cast<int>(a.x.dim(1))),
        eps(a.eps) {}
};

/// Row t by a whole block; out is the row's, in global or shared memory.
FATHOM_DEVICE void layer_norm_row(const LayerNormRows& r, int64_t t, float* out) {
  FATHOM_SHARED(float, scratch, kWarps);
  const float* x = r.x + t * r.n;
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = thread; i < r.n; i += kThreads) sum += x[i];
  const float mean = block_sum(sum, scratch) / static_cast<float>(r.n);
  float squares = 0;
  for (int i = thread; i < r.n; i += kThreads) squares = fmaf(x[i] - mean, x[i] - mean, squares);
  const float scale = 1.0F / sqrtf(block_sum(squares, scratch) / static_cast<float>(r.n) + r.eps);
  for (int i = thread; i < r.n; i += kThreads) out[i] = fmaf((x[i] - mean) * scale, r.weight[i], r.bias[i]);
}

FATHOM_KERNEL(kThreads, 1) layer_norm_kernel(LayerNormRows r, float* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  layer_norm_row(r, blockIdx.x, out + static_cast<int64_t>(blockIdx.x) * r.n);
}

/// Block (chunk of kThreads values, token).
FATHOM_KERNEL(kThreads, 1) store_rows_kernel(const float* x, const int* slots, CacheRows cache, DType type, int n) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int group = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  if (32 * group >= n) return;
  const int64_t t = blockIdx.y;
  const int i = 32 * group + lane;
  store_element(type, row_of(cache, slots[t]), group, lane, n, i < n ? x[t * n + i] : 0.0F);
}

/// A block for each token. Dynamic shared memory: the normed row.
FATHOM_KERNEL(kThreads, 1)
store_index_key_kernel(LayerNormRows r, const float* table, Rotation rotation, const int* slots, CacheRows cache,
                       DType type) {
  FATHOM_DYNAMIC_SHARED(shared);
  float* normed = reinterpret_cast<float*>(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x;
  layer_norm_row(r, t, normed);
  __syncthreads();
  unsigned char* row = row_of(cache, slots[t]);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int group = static_cast<int>(threadIdx.x / 32); 32 * group < r.n; group += kWarps) {
    const int i = 32 * group + lane;
    const float y = i < r.n ? rotated(normed, i, table + t * 2 * rotation.n_pairs, rotation) : 0.0F;
    store_element(type, row, group, lane, r.n, y);
  }
}

}  // namespace

void layer_norm(const LayerNormArgs& a, const OpContext& c) {
  launch_overlapped(layer_norm_kernel, static_cast<unsigned>(a.x.dim(0)), kThreads, 0, c.stream, LayerNormRows(a),
                    a.out.as<float>());
}

void store_rows(const StoreRowsArgs& a, const OpContext& c) {
  const int n = static_cast<int>(a.x.dim(1));
  launch_overlapped(
      store_rows_kernel, dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads), static_cast<unsigned>(a.x.dim(0))),
      kThreads, 0, c.stream, a.x.as<const float>(), a.slots.as<const int>(), CacheRows(a.cache), a.cache.dtype, n);
}

void store_index_key(const LayerNormArgs& norm, const RotateHeadsArgs& rotate, const StoreRowsArgs& store,
                     const OpContext& c) {
  const LayerNormRows rows(norm);
  FATHOM_CHECK(rotate.x.dim(1) == 1 && rotate.x.dim(2) == rows.n && store.x.dim(1) == rows.n, "keys of one head");
  launch_overlapped(store_index_key_kernel, static_cast<unsigned>(norm.x.dim(0)), kThreads,
                    sizeof(float) * static_cast<size_t>(rows.n), c.stream, rows, rotate.table.as<const float>(),
                    rotation_of(rotate), store.slots.as<const int>(), CacheRows(store.cache), store.cache.dtype);
}

}  // namespace fathom::cuda
