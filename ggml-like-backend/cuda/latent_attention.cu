// Latent attention, absorbed: each head's query meets the latents themselves. Three kernels: W_UK into the query,
// attention over the pages, W_UV onto the merged result. Source: arXiv:2405.04434, section 2.1.
#include "cuda/latent_attention_mma.cuh"
#include "cuda/ops.h"
#include "cuda/quantize.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 8;     // that share a decoded weight
constexpr int kRowsEach = 32;  // output rows of a block of head_rows_kernel

unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

/// Rows of a weight as heads have them.
struct HeadWeights {
  Bytes data;
  int64_t head_bytes, row_bytes;
};

/// out[t, h, c] = sum_n q[t, h, n] w[h, n, c]: a sum over rows. Block (32 columns, head, 8 tokens); a warp takes every
/// eighth row.
template <DType kType>
FATHOM_KERNEL(kThreads, 1)
absorb_rows_kernel(HeadWeights w, const float* q, int64_t q_token, int64_t q_head, float* out, int n_rows,
                   int n_columns, int n_tokens, Codebooks books) {
  FATHOM_SHARED(float, sums, kWarps* kTokens * 32);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int group = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.z) * kTokens,
            n_heads = static_cast<int>(gridDim.y);
  const int64_t h = blockIdx.y;
  const bool is_there = 32 * group + lane < n_columns;
  float sum[kTokens];
  for (int j = 0; j < kTokens; ++j) sum[j] = 0;
  const Bytes head = w.data + h * w.head_bytes;
  for (int n = warp; n < n_rows; n += kWarps) {
    const float x = is_there ? element<kType>(head + n * w.row_bytes, group, lane, books) : 0.0F;
    for (int j = 0; j < kTokens; ++j) {
      if (first + j < n_tokens) sum[j] = fmaf(q[(first + j) * q_token + h * q_head + n], x, sum[j]);
    }
  }
  for (int j = 0; j < kTokens; ++j) sums[(warp * kTokens + j) * 32 + lane] = sum[j];
  __syncthreads();
  const int j = warp;  // a warp for each token
  if (first + j >= n_tokens || !is_there) return;
  float y = 0;
  for (int part = 0; part < kWarps; ++part) y += sums[(part * kTokens + j) * 32 + lane];
  out[((first + j) * n_heads + h) * n_columns + 32 * group + lane] = y;
}

/// out[t, h, r] = w[h, r, :] . x[t, h, :]. Block (32 rows, head, 8 tokens). With kMerge x is folded from attention's
/// pieces, and the result is also written in int8 if there is room for it (whole blocks of 32 rows).
template <DType kType, bool kMerge>
FATHOM_KERNEL(kThreads, 1)
head_rows_kernel(HeadWeights w, const float* x, int64_t x_token, int64_t x_head, Partials pieces, const int* positions,
                 float* out, int n_rows, int n_columns, int n_tokens, QuantizedRows quantized, Codebooks books) {
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(float, results, kTokens* kRowsEach);
  float* vectors = reinterpret_cast<float*>(shared);            // [kTokens, n_columns]
  float* totals = vectors + kTokens * n_columns;                // [kTokens], kMerge
  float2* steps = reinterpret_cast<float2*>(totals + kTokens);  // [kTokens, n_pieces], kMerge
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first = static_cast<int>(blockIdx.z) * kTokens, n_heads = static_cast<int>(gridDim.y);
  const int n_here = min(kTokens, n_tokens - first);
  const int64_t h = blockIdx.y;
  if constexpr (kMerge) {
    for (int j = warp; j < n_here; j += kWarps) {
      const int n_used = partials_used(pieces, positions[first + j]);
      const float2* stats = pieces.stats + ((first + j) * n_heads + h) * pieces.n_pieces;
      float2* own = steps + j * pieces.n_pieces;
      fold_steps(stats, n_used, own, lane);
      __syncwarp();
      const float total = folded_sum(own, n_used, [&](int s) { return stats[s].y; });
      if (lane == 0) totals[j] = total;
    }
    __syncthreads();
  }
  for (int i = thread; i < n_here * n_columns; i += kThreads) {
    const int j = i / n_columns, d = i % n_columns;
    if constexpr (kMerge) {
      const float* values = pieces.values + ((first + j) * n_heads + h) * pieces.n_pieces * n_columns + d;
      const float sum = folded_sum(steps + j * pieces.n_pieces, partials_used(pieces, positions[first + j]),
                                   [&](int s) { return values[static_cast<int64_t>(s) * n_columns]; });
      vectors[i] = sum / totals[j];
    } else {
      vectors[i] = x[(first + j) * x_token + h * x_head + d];
    }
  }
  __syncthreads();
  const Bytes head = w.data + h * w.head_bytes;
  for (int r = static_cast<int>(blockIdx.x) * kRowsEach + warp;
       r < min(n_rows, (static_cast<int>(blockIdx.x) + 1) * kRowsEach); r += kWarps) {
    float sum[kTokens];
    for (int j = 0; j < kTokens; ++j) sum[j] = 0;
    for (int d = lane; d < n_columns; d += 32) {
      const float weight = element<kType>(head + r * w.row_bytes, d / 32, lane, books);
      for (int j = 0; j < kTokens; ++j) {
        if (j < n_here) sum[j] = fmaf(weight, vectors[j * n_columns + d], sum[j]);
      }
    }
    for (int j = 0; j < n_here; ++j) {
      float y = 0;
      for (int i = 0; i < kTokens; ++i) y = i == j ? sum[i] : y;  // no register array by a changing index
      y = warp_sum(y);
      if (lane == 0) out[((first + j) * n_heads + h) * n_rows + r] = y;
      if constexpr (kMerge) {
        if (lane == 0) results[j * kRowsEach + r % kRowsEach] = y;
      }
    }
  }
  if constexpr (kMerge) {
    if (quantized.q == nullptr) return;
    __syncthreads();
    if (warp >= n_here) return;  // a warp for each token
    const int64_t block = (((first + warp) * n_heads + h) * n_rows) / kRowsEach + blockIdx.x;
    quantize_block(results[warp * kRowsEach + lane], quantized.q + block * kRowsEach, quantized.scales + block);
  }
}

/// Whether the tensor core kernel takes these sizes. Caches of f16 and f32 keep their digits in the f32 kernel.
bool use_mma(const LatentAttentionArgs& a) {
  const DType type = a.cache.dtype;
  return a.latent_dim() == kLatent && a.rope_dim() == kLatentRow - kLatent &&
         (type == DType::kBF16 || type == DType::kQ8_0 || type == DType::kF8_E4M3);
}

constexpr int kPlainHeads = 8, kPlainValues = 4;

/// What a step of these shapes launches, and its workspace: absorbed queries, partial values, partial stats.
struct Plan {
  bool mma;
  int n_groups;
  Partials pieces;
  size_t query_bytes, value_bytes, stat_bytes;

  explicit Plan(const LatentAttentionArgs& a) : mma(use_mma(a)) {
    const int64_t t = a.q.dim(0), h = a.n_heads();
    n_groups = static_cast<int>(blocks_for(h, mma ? kMmaHeads : kPlainHeads));
    const bool is_folded = t > kSplitTokens;
    // By groups of 16 whichever kernel runs: what a model's pieces are does not depend on its cache type.
    const int most = most_pieces(static_cast<int>(blocks_for(h, kMmaHeads)));
    pieces = {nullptr,
              nullptr,
              is_folded ? 1 : pieces_reserved(a.step.page_table.dim(1) * a.cache.dim(1), most),
              most,
              mma ? kMmaRows : kAttendRows,
              is_folded};
    auto align = [](int64_t floats) { return (static_cast<size_t>(floats) * sizeof(float) + 255) / 256 * 256; };
    query_bytes = align(t * h * a.latent_dim());
    value_bytes = align(t * h * pieces.n_pieces * a.latent_dim());
    stat_bytes = align(t * h * pieces.n_pieces * 2);
  }
};

HeadWeights head_weights(const Tensor& t, int64_t first_row, int64_t rows_each_head) {
  // kv_b is [rows, C], k_b and v_b are [H, rows, columns]; rows of all are as far apart as a row is long.
  const int64_t row = static_cast<int64_t>(row_bytes(t.dtype, t.shape.last()));
  return {t.as<const unsigned char>() + first_row * row, rows_each_head * row, row};
}

}  // namespace

size_t attention_shared_bytes(const LatentAttentionArgs& a) {
  const int width = static_cast<int>(a.cache.dim(2));
  return use_mma(a) ? MmaShared::kBytes : attend_shared_bytes(kPlainHeads, width, width);
}

size_t latent_attention_workspace(const LatentAttentionArgs& a) {
  const Plan plan(a);
  return plan.query_bytes + plan.value_bytes + plan.stat_bytes;
}

void latent_attention(const LatentAttentionArgs& a, const QuantizedRows& quantized, const OpContext& c) {
  const Plan plan(a);
  const int n_tokens = static_cast<int>(a.q.dim(0)), n_heads = static_cast<int>(a.n_heads()),
            nope = static_cast<int>(a.nope_dim()), rope = static_cast<int>(a.rope_dim());
  const int latent = static_cast<int>(a.latent_dim()), value = static_cast<int>(a.value_dim());
  auto* query = reinterpret_cast<float*>(c.workspace);
  Partials pieces = plan.pieces;
  pieces.values = reinterpret_cast<float*>(c.workspace + plan.query_bytes);
  pieces.stats = reinterpret_cast<float2*>(c.workspace + plan.query_bytes + plan.value_bytes);
  const int64_t q_head = nope + rope, q_token = n_heads * q_head;
  const float* q = a.q.as<const float>();
  const unsigned token_blocks = blocks_for(n_tokens, kTokens);

  const Tensor& up_key = a.kv_b ? a.kv_b : a.k_b;
  with_weight_type(up_key.dtype, [&](auto type) {
    constexpr DType kType = decltype(type)::value;
    if (a.kv_b) {
      const dim3 grid(blocks_for(latent, 32), static_cast<unsigned>(n_heads), token_blocks);
      launch_overlapped(absorb_rows_kernel<kType>, grid, kThreads, 0, c.stream, head_weights(a.kv_b, 0, nope + value),
                        q, q_token, q_head, query, nope, latent, n_tokens, c.books);
    } else {
      const dim3 grid(blocks_for(latent, kRowsEach), static_cast<unsigned>(n_heads), token_blocks);
      launch_overlapped(head_rows_kernel<kType, false>, grid, kThreads,
                        sizeof(float) * static_cast<size_t>(kTokens * nope), c.stream, head_weights(a.k_b, 0, latent),
                        q, q_token, q_head, Partials{}, static_cast<const int*>(nullptr), query, latent, nope, n_tokens,
                        QuantizedRows{}, c.books);
    }
  });

  const QueryParts parts{query,  q + nope, static_cast<int64_t>(n_heads) * latent, latent, q_token, q_head,
                         latent, rope};
  const PagedRows rows(a.cache, a.step);
  const AttendSizes sizes{n_heads, latent, a.scale};
  const dim3 grid(static_cast<unsigned>(pieces.n_pieces), static_cast<unsigned>(plan.n_groups),
                  static_cast<unsigned>(n_tokens));
  if (plan.mma) {
    auto attend = [&](auto type) {
      constexpr DType kType = decltype(type)::value;
      launch_overlapped(
          pieces.is_folded ? attend_latent_mma_kernel<kType, true> : attend_latent_mma_kernel<kType, false>, grid,
          kMmaThreads, MmaShared::kBytes, c.stream, parts, rows, sizes, pieces);
    };
    if (a.cache.dtype == DType::kBF16) attend(TypeTag<DType::kBF16>());
    if (a.cache.dtype == DType::kQ8_0) attend(TypeTag<DType::kQ8_0>());
    if (a.cache.dtype == DType::kF8_E4M3) attend(TypeTag<DType::kF8_E4M3>());
  } else {
    const RowParts row{latent + rope, latent + rope, 0, 0, 0, 0};
    with_cache_type(a.cache.dtype, [&](auto type) {
      constexpr DType kType = decltype(type)::value;
      launch_overlapped(pieces.is_folded ? attend_kernel<kType, kPlainHeads, kPlainValues, true>
                                         : attend_kernel<kType, kPlainHeads, kPlainValues, false>,
                        grid, kAttendThreads, attend_shared_bytes(kPlainHeads, latent + rope, latent + rope), c.stream,
                        parts, rows, row, sizes, pieces);
    });
  }

  const Tensor& up_value = a.kv_b ? a.kv_b : a.v_b;
  with_weight_type(up_value.dtype, [&](auto type) {
    const dim3 values_grid(blocks_for(value, kRowsEach), static_cast<unsigned>(n_heads), token_blocks);
    const HeadWeights w = a.kv_b ? head_weights(a.kv_b, nope, nope + value) : head_weights(a.v_b, 0, value);
    const size_t shared = sizeof(float) * static_cast<size_t>(kTokens * (latent + 1 + 2 * pieces.n_pieces));
    launch_overlapped(head_rows_kernel<decltype(type)::value, true>, values_grid, kThreads, shared, c.stream, w,
                      static_cast<const float*>(nullptr), int64_t{0}, int64_t{0}, pieces,
                      a.step.positions.as<const int>(), a.out.as<float>(), value, latent, n_tokens,
                      value % kRowsEach == 0 ? quantized : QuantizedRows{}, c.books);
  });
}

}  // namespace fathom::cuda
