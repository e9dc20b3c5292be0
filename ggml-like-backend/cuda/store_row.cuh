// A token's latent row into the cache, and the rotation of its heads beside it: blocks that stand alone or in the grid
// of another kernel.
#pragma once

#include "cuda/element.cuh"
#include "cuda/rotate.cuh"

namespace fathom::cuda {

constexpr int kStoreThreads = 256;

/// Where cached rows are. A slot is page * page_tokens + offset.
struct CacheRows {
  unsigned char* data = nullptr;
  int64_t page_bytes = 0, row_bytes = 0;
  int page_tokens = 1;

  CacheRows() = default;
  explicit CacheRows(const Tensor& cache)
      : data(cache.as<unsigned char>()),
        page_bytes(cache.strides_bytes[0]),
        row_bytes(cache.strides_bytes[1]),
        page_tokens(static_cast<int>(cache.dim(1))) {}
};

FATHOM_DEVICE unsigned char* row_of(const CacheRows& rows, int slot) {
  return rows.data + static_cast<int64_t>(slot / rows.page_tokens) * rows.page_bytes +
         static_cast<int64_t>(slot % rows.page_tokens) * rows.row_bytes;
}

/// Rounds x, element 32 * group + lane of a row of n, to nearest even. All lanes of the warp call it; lanes past n
/// store nothing.
template <DType kType> FATHOM_DEVICE void store_element(unsigned char* row, int group, int lane, int n, float x) {
  const int i = 32 * group + lane;
  if constexpr (kType == DType::kQ8_0) {  // n is a multiple of 32
    const uint16_t scale = float_to_half(warp_max(fabsf(x)) / 127.0F);
    const float d = half_to_float(scale), inverse = d > 0 ? 1.0F / d : 0.0F;
    unsigned char* block = row + 34 * group;
    if (lane == 0) *reinterpret_cast<uint16_t*>(block) = scale;
    block[2 + lane] =
        static_cast<unsigned char>(static_cast<signed char>(fminf(fmaxf(nearbyintf(x * inverse), -127.0F), 127.0F)));
  } else {
    if (i >= n) return;
    if constexpr (kType == DType::kF32) reinterpret_cast<float*>(row)[i] = x;
    if constexpr (kType == DType::kF16) reinterpret_cast<uint16_t*>(row)[i] = float_to_half(x);
    if constexpr (kType == DType::kBF16) reinterpret_cast<uint16_t*>(row)[i] = float_to_bf16(x);
    if constexpr (kType == DType::kF8_E4M3) row[i] = float_to_fp8(x);
  }
}

/// The same for a type that the launch says: where a block more or less decides nothing, one kernel does for all.
FATHOM_DEVICE void store_element(DType type, unsigned char* row, int group, int lane, int n, float x) {
  if (type == DType::kQ8_0) return store_element<DType::kQ8_0>(row, group, lane, n, x);
  if (type == DType::kF32) return store_element<DType::kF32>(row, group, lane, n, x);
  if (type == DType::kF16) return store_element<DType::kF16>(row, group, lane, n, x);
  if (type == DType::kBF16) return store_element<DType::kBF16>(row, group, lane, n, x);
  store_element<DType::kF8_E4M3>(row, group, lane, n, x);
}

struct LatentRow {
  const float* kv_a = nullptr;
  const float* norm_weight = nullptr;
  const float* table = nullptr;
  const int* slots = nullptr;
  CacheRows cache{};
  DType type{};
  int n_latent = 0;  ///< values that are normed: those that are not rotated, or the whole row
  float eps = 0;
  Rotation rotation{};  ///< of the row as one head

  LatentRow() = default;
  explicit LatentRow(const StoreLatentArgs& a)
      : kv_a(a.kv_a.as<const float>()),
        norm_weight(a.norm_weight.as<const float>()),
        table(a.rope_table.as<const float>()),
        slots(a.slots.as<const int>()),
        cache(a.cache),
        type(a.cache.dtype),
        n_latent(static_cast<int>(a.norm_weight.dim(0))),
        eps(a.eps),
        rotation{static_cast<int>(a.kv_a.dim(1)), static_cast<int>(a.kv_a.dim(1) - 2 * a.rope_table.dim(1)),
                 static_cast<int>(a.rope_table.dim(1)), a.pairing == RopePairing::kAdjacent} {}
};

/// By a whole block of kStoreThreads: token t's row.
FATHOM_DEVICE void store_latent_row(const LatentRow& r, int64_t t) {
  constexpr int kThreads = kStoreThreads;
  FATHOM_SHARED(float, scratch, kThreads / 32);
  const int n = r.rotation.head_dim, lane = static_cast<int>(threadIdx.x % 32),
            warp = static_cast<int>(threadIdx.x / 32);
  const float* x = r.kv_a + t * n;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < r.n_latent; i += kThreads) squares = fmaf(x[i], x[i], squares);
  squares = warp_sum(squares);
  if (lane == 0) scratch[warp] = squares;
  __syncthreads();
  const float total = warp_sum(lane < kThreads / 32 ? scratch[lane] : 0.0F);
  const float scale = 1.0F / sqrtf(total / static_cast<float>(r.n_latent) + r.eps);
  unsigned char* row = row_of(r.cache, r.slots[t]);
  for (int group = warp; 32 * group < n; group += kThreads / 32) {
    const int i = 32 * group + lane;
    auto normed = [&](int j) { return j < r.n_latent ? x[j] * scale * r.norm_weight[j] : x[j]; };
    const float y = i < n ? rotated_value(normed, i, r.table + t * 2 * r.rotation.n_pairs, r.rotation) : 0.0F;
    store_element(r.type, row, group, lane, n, y);
  }
}

/// What store_latent and rotate_heads of a step have to do; by default nothing.
struct RowsAndHeads {
  LatentRow row{};
  const float* x = nullptr;
  float* out = nullptr;
  int n = 0;  ///< values of a token's heads
  Rotation rotation{};
  int n_tokens = 0;

  RowsAndHeads() = default;
  RowsAndHeads(const StoreLatentArgs& store, const RotateHeadsArgs& rotate)
      : row(store),
        x(rotate.x.as<const float>()),
        out(rotate.out.as<float>()),
        n(static_cast<int>(rotate.x.dim(1) * rotate.x.dim(2))),
        rotation(rotation_of(rotate)),
        n_tokens(static_cast<int>(store.kv_a.dim(0))) {}
  constexpr int blocks_each() const { return 1 + (n + kStoreThreads - 1) / kStoreThreads; }
  constexpr int n_blocks() const { return n_tokens * blocks_each(); }
};

/// Block i of n_blocks(): of each token the first stores its row, the others rotate its heads.
FATHOM_DEVICE void store_and_rotate_block(const RowsAndHeads& w, int block) {
  const int64_t t = block / w.blocks_each();
  const int chunk = block % w.blocks_each();
  if (chunk == 0) return store_latent_row(w.row, t);
  const int i = (chunk - 1) * kStoreThreads + static_cast<int>(threadIdx.x);
  if (i < w.n) w.out[t * w.n + i] = rotated(w.x + t * w.n, i, w.row.table + t * 2 * w.rotation.n_pairs, w.rotation);
}

}  // namespace fathom::cuda
