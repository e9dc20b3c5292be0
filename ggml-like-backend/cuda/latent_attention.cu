// Latent attention, absorbed: each head's query meets the latents themselves. Three kernels: W_UK into the query,
// attention over the pages, W_UV onto the merged result. Source: arXiv:2405.04434, section 2.1.
#include "cuda/attention_mma.cuh"
#include "cuda/ops.h"
#include "cuda/quantize.cuh"
#include "cuda/store_row.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 8;     // that share a decoded weight
constexpr int kRowsEach = 32;  // results of a block for each of its tokens

unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

/// Rows of a weight as heads have them.
struct HeadWeights {
  Bytes data;
  int64_t head_bytes, row_bytes;
};

/// Blocks of 32 of a head's results and up to kTokens tokens, in this order: of results, head, tokens.
struct HeadBlock {
  int part, head, first;

  FATHOM_DEVICE HeadBlock(int block, int n_parts, int n_heads)
      : part(block % n_parts), head(block / n_parts % n_heads), first(block / n_parts / n_heads * kTokens) {}
};
constexpr int head_blocks(int n_results, int n_heads, int n_tokens) {
  return (n_results + kRowsEach - 1) / kRowsEach * n_heads * ((n_tokens + kTokens - 1) / kTokens);
}

/// While an earlier kernel still runs: the blocks of a head ask for a part of its n_rows rows each.
FATHOM_DEVICE void prefetch_head(const HeadWeights& w, int block, int n_parts, int n_heads, int n_rows) {
  const HeadBlock at(block, n_parts, n_heads);
  const int each = (n_rows + n_parts - 1) / n_parts, first = at.part * each;
  if (at.first == 0 && first < n_rows)
    prefetch_run(w.data + at.head * w.head_bytes + first * w.row_bytes, min(each, n_rows - first) * w.row_bytes,
                 static_cast<int>(threadIdx.x), kThreads);
}

/// out[t, h, c] = sum_n q[t, h, n] w[h, n, c]: a sum over rows. Blocks of 32 columns; a warp takes every eighth row.
/// Blocks behind those do the work `beside`, which needs nothing of theirs.
template <DType kType>
FATHOM_KERNEL(kThreads, 1)
absorb_rows_kernel(HeadWeights w, const float* q, int64_t q_token, int64_t q_head, float* out, int n_rows,
                   int n_columns, int n_heads, int n_tokens, Codebooks books, RowsAndHeads beside) {
  FATHOM_SHARED(float, sums, kWarps* kTokens * 32);
  const int block = static_cast<int>(blockIdx.x), n_own = head_blocks(n_columns, n_heads, n_tokens);
  if (block < n_own) prefetch_head(w, block, (n_columns + 31) / 32, n_heads, n_rows);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (block >= n_own) return store_and_rotate_block(beside, block - n_own);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const HeadBlock at(block, (n_columns + 31) / 32, n_heads);
  const int group = at.part, first = at.first;
  const int64_t h = at.head;
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

/// out[t, h, r] = w[h, r, :] . x[t, h, :]. Blocks of 32 rows. With kMerge x is folded from attention's pieces, and the
/// result is also written in int8 if there is room for it (whole blocks of 32 rows); without, blocks behind its own do
/// the work `beside`.
template <DType kType, bool kMerge>
FATHOM_KERNEL(kThreads, 1)
head_rows_kernel(HeadWeights w, const float* x, int64_t x_token, int64_t x_head, Partials pieces, const int* positions,
                 float* out, int n_rows, int n_columns, int n_heads, int n_tokens, QuantizedRows quantized,
                 Codebooks books, RowsAndHeads beside) {
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(float, results, kTokens* kRowsEach);
  float* vectors = reinterpret_cast<float*>(shared);            // [kTokens, n_columns]
  float* totals = vectors + kTokens * n_columns;                // [kTokens], kMerge
  float2* steps = reinterpret_cast<float2*>(totals + kTokens);  // [kTokens, n_pieces], kMerge
  const int block = static_cast<int>(blockIdx.x), n_own = head_blocks(n_rows, n_heads, n_tokens);
  if (block < n_own) prefetch_head(w, block, (n_rows + kRowsEach - 1) / kRowsEach, n_heads, n_rows);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if constexpr (!kMerge) {
    if (block >= n_own) return store_and_rotate_block(beside, block - n_own);
  }
  const HeadBlock at(block, (n_rows + kRowsEach - 1) / kRowsEach, n_heads);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first = at.first, n_here = min(kTokens, n_tokens - first);
  const int64_t h = at.head;
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
  if constexpr (kMerge) {  // two columns a thread: their loads, many pieces ahead, are what this waits for
    const int pairs = n_columns / 2;
    for (int i = thread; i < n_here * pairs; i += kThreads) {
      const int j = i / pairs, d = i % pairs * 2;
      const float* values = pieces.values + ((first + j) * n_heads + h) * pieces.n_pieces * n_columns + d;
      const float2 sum =
          folded_pair(steps + j * pieces.n_pieces, partials_used(pieces, positions[first + j]), values, n_columns);
      vectors[j * n_columns + d] = sum.x / totals[j];
      vectors[j * n_columns + d + 1] = sum.y / totals[j];
    }
  } else {
    for (int i = thread; i < n_here * n_columns; i += kThreads)
      vectors[i] = x[(first + i / n_columns) * x_token + h * x_head + i % n_columns];
  }
  __syncthreads();
  const Bytes head = w.data + h * w.head_bytes;
  for (int r = at.part * kRowsEach + warp; r < min(n_rows, (at.part + 1) * kRowsEach); r += kWarps) {
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
    const int64_t to = (((first + warp) * n_heads + h) * n_rows) / kRowsEach + at.part;
    quantize_block(results[warp * kRowsEach + lane], quantized.q + to * kRowsEach, quantized.scales + to);
  }
}

/// Whether the tensor core kernel takes these sizes.
bool use_mma(const LatentAttentionArgs& a) {
  return a.latent_dim() == kLatent && a.rope_dim() == kLatentRow - kLatent && is_mma_cache(a.cache.dtype);
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
    const SeenCounts counts = SeenRows::counts_of(a.chosen);
    const int64_t most_rows = most_rows_seen(counts, a.step.page_table.dim(1) * a.cache.dim(1));
    pieces = {nullptr,   nullptr, is_folded ? 1 : pieces_reserved(most_rows, most), most, mma ? kMmaRows : kAttendRows,
              is_folded, counts};
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
  return use_mma(a) ? MmaShared<kLatentRow>::kBytes : attend_shared_bytes(kPlainHeads, width, width);
}

size_t latent_attention_workspace(const LatentAttentionArgs& a) {
  const Plan plan(a);
  return plan.query_bytes + plan.value_bytes + plan.stat_bytes;
}

namespace {

/// `unrotated`: the queries, or what they were before their rotation by `beside`, in the same places.
void launch_attention(const LatentAttentionArgs& a, const float* unrotated, const RowsAndHeads& beside,
                      const QuantizedRows& quantized, const OpContext& c) {
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

  const Tensor& up_key = a.kv_b ? a.kv_b : a.k_b;
  with_weight_type(up_key.dtype, [&](auto type) {
    constexpr DType kType = decltype(type)::value;
    const auto grid = static_cast<unsigned>(head_blocks(latent, n_heads, n_tokens) + beside.n_blocks());
    if (a.kv_b) {
      launch_overlapped(absorb_rows_kernel<kType>, grid, kThreads, 0, c.stream, head_weights(a.kv_b, 0, nope + value),
                        unrotated, q_token, q_head, query, nope, latent, n_heads, n_tokens, c.books, beside);
    } else {
      launch_overlapped(head_rows_kernel<kType, false>, grid, kThreads,
                        sizeof(float) * static_cast<size_t>(kTokens * nope), c.stream, head_weights(a.k_b, 0, latent),
                        unrotated, q_token, q_head, Partials{}, static_cast<const int*>(nullptr), query, latent, nope,
                        n_heads, n_tokens, QuantizedRows{}, c.books, beside);
    }
  });

  const QueryParts parts{query,  q + nope, static_cast<int64_t>(n_heads) * latent, latent, q_token, q_head,
                         latent, rope};
  const SeenRows rows(a.cache, a.step, a.chosen);
  const AttendSizes sizes{n_heads, latent, a.scale};
  const dim3 grid(static_cast<unsigned>(pieces.n_pieces), static_cast<unsigned>(plan.n_groups),
                  static_cast<unsigned>(n_tokens));
  if (plan.mma) {
    with_mma_cache(a.cache.dtype, [&](auto type) {
      constexpr DType kType = decltype(type)::value;
      launch_overlapped(
          pieces.is_folded ? attend_mma_kernel<kType, kLatentRow, true> : attend_mma_kernel<kType, kLatentRow, false>,
          grid, kMmaThreads, MmaShared<kLatentRow>::kBytes, c.stream, parts, rows, sizes, pieces);
    });
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
    const auto values_grid = static_cast<unsigned>(head_blocks(value, n_heads, n_tokens));
    const HeadWeights w = a.kv_b ? head_weights(a.kv_b, nope, nope + value) : head_weights(a.v_b, 0, value);
    const size_t shared = sizeof(float) * static_cast<size_t>(kTokens * (latent + 1 + 2 * pieces.n_pieces));
    launch_overlapped(head_rows_kernel<decltype(type)::value, true>, values_grid, kThreads, shared, c.stream, w,
                      static_cast<const float*>(nullptr), int64_t{0}, int64_t{0}, pieces,
                      a.step.positions.as<const int>(), a.out.as<float>(), value, latent, n_heads, n_tokens,
                      value % kRowsEach == 0 ? quantized : QuantizedRows{}, c.books, RowsAndHeads{});
  });
}

}  // namespace

void latent_attention(const LatentAttentionArgs& a, const QuantizedRows& quantized, const OpContext& c) {
  launch_attention(a, a.q.as<const float>(), {}, quantized, c);
}

void store_rotate_and_attend(const StoreLatentArgs& store, const RotateHeadsArgs& rotate, const LatentAttentionArgs& a,
                             const QuantizedRows& quantized, const OpContext& c) {
  launch_attention(a, rotate.x.as<const float>(), RowsAndHeads(store, rotate), quantized, c);
}

}  // namespace fathom::cuda
