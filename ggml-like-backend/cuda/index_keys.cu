// What keys of the indexer take on their way into the cache, each by itself: layer norm, rows as they are.
#include "cuda/index_key.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = kStoreThreads, kWarps = kThreads / 32;

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

}  // namespace fathom::cuda
