// V1's keys and values on their way into the cache.
#include "cuda/ops.h"
#include "cuda/store_row.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = kStoreThreads;

/// Block (chunk of 8 groups, keys or values, token): the row's first half are keys.
template <DType kType>
FATHOM_KERNEL(kThreads, 1)
store_key_value_kernel(const float* k, const float* v, const int* slots, CacheRows cache, int n, int64_t half_bytes) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int group = static_cast<int>(blockIdx.x * (kThreads / 32) + threadIdx.x / 32),
            lane = static_cast<int>(threadIdx.x % 32);
  if (32 * group >= n) return;
  const int64_t t = blockIdx.z;
  const float* x = (blockIdx.y == 0 ? k : v) + t * n;
  const int i = 32 * group + lane;
  store_element<kType>(row_of(cache, slots[t]) + blockIdx.y * half_bytes, group, lane, n, i < n ? x[i] : 0.0F);
}

}  // namespace

void store_key_value(const StoreKeyValueArgs& a, const OpContext& c) {
  const int n = static_cast<int>(a.k.dim(1) * a.k.dim(2));
  const dim3 grid(static_cast<unsigned>((n + kThreads - 1) / kThreads), 2, static_cast<unsigned>(a.k.dim(0)));
  with_cache_type(a.cache.dtype, [&](auto type) {
    launch_overlapped(store_key_value_kernel<decltype(type)::value>, grid, kThreads, 0, c.stream, a.k.as<const float>(),
                      a.v.as<const float>(), a.slots.as<const int>(), CacheRows(a.cache), n,
                      static_cast<int64_t>(row_bytes(a.cache.dtype, n)));
  });
}

}  // namespace fathom::cuda
