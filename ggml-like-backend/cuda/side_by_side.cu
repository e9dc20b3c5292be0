// What stands between a layer's products and its attention: rows on their way into caches, heads on their way to be
// compared with them. None needs what another makes, so that all of it is one launch: blocks for each part of each
// token.
#include <algorithm>

#include "core/error.h"
#include "cuda/compress_row.cuh"
#include "cuda/index_key.cuh"
#include "cuda/norm.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = kStoreThreads;
static_assert(kThreads == kNormShares, "a share of a norm for each thread");

/// Heads to be rotated, if `is_normed` after a norm without weights.
struct Heads {
  const float* x = nullptr;
  float* out = nullptr;
  const float* table = nullptr;
  int n = 0;  ///< values of a token's heads
  Rotation rotation{};
  bool is_normed = false;
  float eps = 0;

  Heads() = default;
  explicit Heads(const RotateHeadsArgs& a)
      : x(a.x.as<const float>()),
        out(a.out.as<float>()),
        table(a.table.as<const float>()),
        n(static_cast<int>(a.x.dim(1) * a.x.dim(2))),
        rotation(rotation_of(a)) {}
  Heads(const RmsNormArgs& norm, const RotateHeadsArgs& rotate) : Heads(rotate) {
    FATHOM_CHECK(!norm.weight && norm.x.dim(1) == rotate.x.dim(2), "a norm of each head");
    x = norm.x.as<const float>();
    is_normed = true;
    eps = norm.eps;
  }
  constexpr int n_blocks() const { return is_normed ? n / rotation.head_dim : (n + kThreads - 1) / kThreads; }
};

/// Values of token t by one of n_blocks() blocks: a head, or kThreads values.
FATHOM_DEVICE void rotate_block(const Heads& heads, int64_t t, int block) {
  FATHOM_SHARED(float, scratch, kNormShares / 32);
  const Rotation& r = heads.rotation;
  const float* pairs = heads.table + t * 2 * r.n_pairs;
  if (!heads.is_normed) {
    const int i = block * kThreads + static_cast<int>(threadIdx.x);
    if (i < heads.n) heads.out[t * heads.n + i] = rotated(heads.x + t * heads.n, i, pairs, r);
    return;
  }
  const int64_t at = t * heads.n + static_cast<int64_t>(block) * r.head_dim;
  norm_row(heads.x + at, nullptr, heads.out + at, r.head_dim, heads.eps, nullptr, nullptr, scratch);
  for (int i = static_cast<int>(threadIdx.x); i < r.n_pairs; i += kThreads) {
    const int first = r.first_dim + (r.is_adjacent ? 2 * i : i), second = first + (r.is_adjacent ? 1 : r.n_pairs);
    const float left = rotated(heads.out + at, first, pairs, r), right = rotated(heads.out + at, second, pairs, r);
    heads.out[at + first] = left;
    heads.out[at + second] = right;
  }
}

/// What there is to do; of each token the blocks in this order.
struct Work {
  CompressTask compressed[kMostSideBySide];
  LatentRow latent;
  IndexKey key;
  Heads heads[kMostSideBySide];
  int n_compressed = 0, n_latents = 0, n_keys = 0, n_heads = 0;
  int n_blocks = 0;  ///< of a token
};

FATHOM_KERNEL(kThreads, 1) side_by_side_kernel(Work work) {
  FATHOM_DYNAMIC_SHARED(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x / static_cast<unsigned>(work.n_blocks);
  int block = static_cast<int>(blockIdx.x % static_cast<unsigned>(work.n_blocks));
  if (block < work.n_compressed) return compress_row(work.compressed[block], t, shared);
  block -= work.n_compressed;
  if (block < work.n_latents) return store_latent_row(work.latent, t);
  block -= work.n_latents;
  if (block < work.n_keys) return store_index_key(work.key, t, reinterpret_cast<float*>(shared));
  block -= work.n_keys;
  const int of_first = work.heads[0].n_blocks();
  block < of_first ? rotate_block(work.heads[0], t, block) : rotate_block(work.heads[1], t, block - of_first);
}

}  // namespace

size_t compress_rows_shared_bytes(const CompressRowsArgs& a) { return compress_shared_bytes(a); }

void side_by_side(std::span<const Node> nodes, const OpContext& c) {
  Work work;
  int64_t n_tokens = 0;
  size_t shared = 0;
  auto take = [&](auto& all, int& n, auto one) {
    FATHOM_CHECK(n < kMostSideBySide, "two of a kind");
    all[n++] = one;
  };
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (const auto* a = std::get_if<StoreLatentArgs>(&nodes[i].args)) {
      work.latent = LatentRow(*a);
      ++work.n_latents;
      n_tokens = a->kv_a.dim(0);
    } else if (const auto* a = std::get_if<CompressRowsArgs>(&nodes[i].args)) {
      take(work.compressed, work.n_compressed, CompressTask(*a));
      shared = std::max(shared, compress_shared_bytes(*a));
      n_tokens = a->kv.dim(0);
    } else if (const auto* a = std::get_if<RotateHeadsArgs>(&nodes[i].args)) {
      take(work.heads, work.n_heads, Heads(*a));
      n_tokens = a->x.dim(0);
    } else if (const auto* a = std::get_if<RmsNormArgs>(&nodes[i].args)) {
      const auto& rotate = std::get<RotateHeadsArgs>(nodes[++i].args);
      take(work.heads, work.n_heads, Heads(*a, rotate));
      n_tokens = rotate.x.dim(0);
    } else {
      const auto& norm = std::get<LayerNormArgs>(nodes[i].args);
      const auto& rotate = std::get<RotateHeadsArgs>(nodes[++i].args);
      const auto& store = std::get<StoreRowsArgs>(nodes[++i].args);
      const int64_t n = norm.x.dim(1);
      FATHOM_CHECK(rotate.x.dim(1) == 1 && rotate.x.dim(2) == n && store.x.dim(1) == n, "keys of one head");
      work.key = IndexKey(norm, rotate, store);
      ++work.n_keys;
      shared = std::max(shared, sizeof(float) * static_cast<size_t>(n));
      n_tokens = norm.x.dim(0);
    }
  }
  FATHOM_CHECK(work.n_latents <= 1 && work.n_keys <= 1, "one row of a kind");
  work.n_blocks = work.n_compressed + work.n_latents + work.n_keys;
  for (const Heads& heads : work.heads) {
    if (heads.n > 0) work.n_blocks += heads.n_blocks();
  }
  launch_overlapped(side_by_side_kernel, static_cast<unsigned>(n_tokens * work.n_blocks), kThreads, shared, c.stream,
                    work);
}

}  // namespace fathom::cuda
