// A token's row on its way into the cache: norm of the latent and rotation of the shared key, and the cache's types.
#include "cuda/element.cuh"
#include "cuda/ops.h"
#include "cuda/rotate.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

/// Where cached rows are. A slot is page * page_tokens + offset.
struct CacheRows {
  unsigned char* data;
  int64_t page_bytes, row_bytes;
  int page_tokens;

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

struct LatentRow {
  const float* kv_a;
  const float* norm_weight;
  const float* table;
  const int* slots;
  CacheRows cache;
  int n_latent;
  float eps;
  Rotation rotation;  ///< of the row as one head

  explicit LatentRow(const StoreLatentArgs& a)
      : kv_a(a.kv_a.as<const float>()),
        norm_weight(a.norm_weight.as<const float>()),
        table(a.rope_table.as<const float>()),
        slots(a.slots.as<const int>()),
        cache(a.cache),
        n_latent(static_cast<int>(a.norm_weight.dim(0))),
        eps(a.eps),
        rotation{static_cast<int>(a.kv_a.dim(1)), n_latent, static_cast<int>(a.rope_table.dim(1)),
                 a.pairing == RopePairing::kAdjacent} {}
};

/// By a whole block: token t's row.
template <DType kType> FATHOM_DEVICE void store_latent_row(const LatentRow& r, int64_t t) {
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
    float y = 0;
    if (i < r.n_latent) {
      y = x[i] * scale * r.norm_weight[i];
    } else if (i < n) {
      y = rotated(x, i, r.table + t * 2 * r.rotation.n_pairs, r.rotation);
    }
    store_element<kType>(row, group, lane, n, y);
  }
}

/// A block for each token.
template <DType kType> FATHOM_KERNEL(kThreads, 1) store_latent_kernel(LatentRow r) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  store_latent_row<kType>(r, blockIdx.x);
}

/// Block (0, token) stores the token's row, blocks (1 + chunk, token) rotate its heads.
template <DType kType>
FATHOM_KERNEL(kThreads, 1)
store_and_rotate_kernel(LatentRow r, const float* x, float* out, int n, Rotation rotation) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.y;
  if (blockIdx.x == 0) {
    store_latent_row<kType>(r, t);
    return;
  }
  const int i = static_cast<int>((blockIdx.x - 1) * kThreads + threadIdx.x);
  if (i < n) out[t * n + i] = rotated(x + t * n, i, r.table + t * 2 * rotation.n_pairs, rotation);
}

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

void store_latent(const StoreLatentArgs& a, const OpContext& c) {
  with_cache_type(a.cache.dtype, [&](auto type) {
    launch_overlapped(store_latent_kernel<decltype(type)::value>, static_cast<unsigned>(a.kv_a.dim(0)), kThreads, 0,
                      c.stream, LatentRow(a));
  });
}

void store_and_rotate(const StoreLatentArgs& store, const RotateHeadsArgs& rotate, const OpContext& c) {
  const int n = static_cast<int>(rotate.x.dim(1) * rotate.x.dim(2));
  const dim3 grid(1 + static_cast<unsigned>((n + kThreads - 1) / kThreads), static_cast<unsigned>(store.kv_a.dim(0)));
  with_cache_type(store.cache.dtype, [&](auto type) {
    launch_overlapped(store_and_rotate_kernel<decltype(type)::value>, grid, kThreads, 0, c.stream, LatentRow(store),
                      rotate.x.as<const float>(), rotate.out.as<float>(), n, rotation_of(rotate));
  });
}

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
