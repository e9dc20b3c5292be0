// A key of the indexer: layer norm, rotation as one head, its row in the cache.
#pragma once

#include "cuda/store_row.cuh"

namespace fathom::cuda {

/// Over a block of kStoreThreads.
FATHOM_DEVICE float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < kStoreThreads / 32; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

struct LayerNormRows {
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  int n = 0;
  float eps = 0;

  LayerNormRows() = default;
  explicit LayerNormRows(const LayerNormArgs& a)
      : x(a.x.as<const float>()),
        weight(a.weight.as<const float>()),
        bias(a.bias.as<const float>()),
        n(static_cast<int>(a.x.dim(1))),
        eps(a.eps) {}
};

/// Row t by a whole block; out is the row's, in global or shared memory.
FATHOM_DEVICE void layer_norm_row(const LayerNormRows& r, int64_t t, float* out) {
  FATHOM_SHARED(float, scratch, kStoreThreads / 32);
  const float* x = r.x + t * r.n;
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = thread; i < r.n; i += kStoreThreads) sum += x[i];
  const float mean = block_sum(sum, scratch) / static_cast<float>(r.n);
  float squares = 0;
  for (int i = thread; i < r.n; i += kStoreThreads) squares = fmaf(x[i] - mean, x[i] - mean, squares);
  const float scale = 1.0F / sqrtf(block_sum(squares, scratch) / static_cast<float>(r.n) + r.eps);
  for (int i = thread; i < r.n; i += kStoreThreads) out[i] = fmaf((x[i] - mean) * scale, r.weight[i], r.bias[i]);
}

struct IndexKey {
  LayerNormRows norm{};
  const float* table = nullptr;
  Rotation rotation{};
  const int* slots = nullptr;
  CacheRows cache{};
  DType type{};

  IndexKey() = default;
  IndexKey(const LayerNormArgs& a, const RotateHeadsArgs& rotate, const StoreRowsArgs& store)
      : norm(a),
        table(rotate.table.as<const float>()),
        rotation(rotation_of(rotate)),
        slots(store.slots.as<const int>()),
        cache(store.cache),
        type(store.cache.dtype) {}
};

/// Token t's by a whole block; `normed` [n] is shared memory.
FATHOM_DEVICE void store_index_key(const IndexKey& key, int64_t t, float* normed) {
  layer_norm_row(key.norm, t, normed);
  __syncthreads();
  unsigned char* row = row_of(key.cache, key.slots[t]);
  const int n = key.norm.n, lane = static_cast<int>(threadIdx.x % 32);
  for (int group = static_cast<int>(threadIdx.x / 32); 32 * group < n; group += kStoreThreads / 32) {
    const int i = 32 * group + lane;
    const float y = i < n ? rotated(normed, i, key.table + t * 2 * key.rotation.n_pairs, key.rotation) : 0.0F;
    store_element(key.type, row, group, lane, n, y);
  }
}

}  // namespace fathom::cuda
