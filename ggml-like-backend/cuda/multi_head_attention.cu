// Attention with a key and a value head for every query head (V1): pieces of the cached rows, then their merge.
#include "cuda/ops.h"
#include "cuda/paged_attention.cuh"

namespace fathom::cuda {
namespace {

/// A block for each (head, token). Dynamic shared memory: a fold step for each piece.
FATHOM_KERNEL(kAttendThreads, 1) merge_kernel(Partials pieces, const int* positions, float* out, int value_dim) {
  FATHOM_DYNAMIC_SHARED(shared);
  float2* steps = reinterpret_cast<float2*>(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t job = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int n_used = partials_used(pieces, positions[blockIdx.y]);
  const float2* stats = pieces.stats + job * pieces.n_pieces;
  if (threadIdx.x < 32) fold_steps(stats, n_used, steps, static_cast<int>(threadIdx.x));
  __syncthreads();
  const float total = folded_sum(steps, n_used, [&](int s) { return stats[s].y; });
  const float* values = pieces.values + job * pieces.n_pieces * value_dim;
  for (int d = static_cast<int>(threadIdx.x); d < value_dim; d += kAttendThreads) {
    out[job * value_dim + d] =
        folded_sum(steps, n_used, [&](int s) { return values[static_cast<int64_t>(s) * value_dim + d]; }) / total;
  }
}

size_t align(int64_t floats) { return (static_cast<size_t>(floats) * sizeof(float) + 255) / 256 * 256; }

Partials plan(const MultiHeadAttentionArgs& a) {
  const bool is_folded = a.q.dim(0) > kSplitTokens;
  const int most = most_pieces(static_cast<int>(a.q.dim(1)));
  return {nullptr, nullptr,     is_folded ? 1 : pieces_reserved(a.step.page_table.dim(1) * a.cache.dim(1), most),
          most,    kAttendRows, is_folded};
}

}  // namespace

size_t multi_head_attention_workspace(const MultiHeadAttentionArgs& a) {
  const int64_t n = a.q.dim(0) * a.q.dim(1) * plan(a).n_pieces;
  return align(n * a.q.dim(2)) + align(n * 2);
}

void multi_head_attention(const MultiHeadAttentionArgs& a, const OpContext& c) {
  const int n_tokens = static_cast<int>(a.q.dim(0)), n_heads = static_cast<int>(a.q.dim(1)),
            n = static_cast<int>(a.q.dim(2));
  Partials pieces = plan(a);
  pieces.values = reinterpret_cast<float*>(c.workspace);
  pieces.stats =
      reinterpret_cast<float2*>(c.workspace + align(static_cast<int64_t>(n_tokens) * n_heads * pieces.n_pieces * n));
  const QueryParts query{a.q.as<const float>(), nullptr, static_cast<int64_t>(n_heads) * n, n, 0, 0, n, 0};
  const SeenRows rows(a.cache, a.step);
  const RowParts parts{n, 2 * n, 0, n_heads * n, n, n};
  const dim3 grid(static_cast<unsigned>(pieces.n_pieces), static_cast<unsigned>(n_heads),
                  static_cast<unsigned>(n_tokens));
  with_cache_type(a.cache.dtype, [&](auto type) {
    constexpr DType kType = decltype(type)::value;
    launch_overlapped(pieces.is_folded ? attend_kernel<kType, 1, 2, true> : attend_kernel<kType, 1, 2, false>, grid,
                      kAttendThreads, attend_shared_bytes(1, n, 2 * n), c.stream, query, rows, parts,
                      AttendSizes{n_heads, n, a.scale}, pieces);
  });
  launch_overlapped(merge_kernel, dim3(static_cast<unsigned>(n_heads), static_cast<unsigned>(n_tokens)), kAttendThreads,
                    sizeof(float2) * static_cast<size_t>(pieces.n_pieces), c.stream, pieces,
                    a.step.positions.as<const int>(), a.out.as<float>(), n);
}

}  // namespace fathom::cuda
