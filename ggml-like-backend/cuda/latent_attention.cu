// Latent attention, absorbed: each head's query meets the latents themselves. Three kernels: W_UK into the query,
// attention over the pages, W_UV onto the merged result. Source: arXiv:2405.04434, section 2.1.
#include "cuda/attention_mma.cuh"
#include "cuda/ops.h"
#include "cuda/quantize.cuh"
#include "cuda/store_row.cuh"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 8;     // that share a decoded weight; a step of one token has kernels of its own
constexpr int kRowsEach = 32;  // results that a block makes at a time for each of its tokens
/// Times that it does: where heads alone are blocks for all multiprocessors, fewer blocks merge the same pieces.
constexpr int rounds_for(int n_heads, int n_tokens) { return n_heads >= 128 && n_tokens == 1 ? 2 : 1; }

unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

/// Rows of a weight as heads have them.
struct HeadWeights {
  Bytes data;
  int64_t head_bytes, row_bytes;
};

/// Blocks of 32 of a head's results and up to n_each tokens, in this order: of results, head, tokens.
struct HeadBlock {
  int part, head, first;

  FATHOM_DEVICE HeadBlock(int block, int n_parts, int n_heads, int n_each)
      : part(block % n_parts), head(block / n_parts % n_heads), first(block / n_parts / n_heads * n_each) {}
};
constexpr int head_blocks(int n_results, int n_heads, int n_tokens, int n_rounds = 1) {
  const int n_each = n_tokens == 1 ? 1 : kTokens, rows_each = kRowsEach * n_rounds;
  return (n_results + rows_each - 1) / rows_each * n_heads * ((n_tokens + n_each - 1) / n_each);
}

/// While an earlier kernel still runs: the blocks of a head ask for a part of its n_rows rows each.
FATHOM_DEVICE void prefetch_head(const HeadWeights& w, const HeadBlock& at, int n_parts, int n_rows) {
  const int each = (n_rows + n_parts - 1) / n_parts, first = at.part * each;
  if (at.first == 0 && first < n_rows)
    prefetch_run(w.data + at.head * w.head_bytes + first * w.row_bytes, min(each, n_rows - first) * w.row_bytes,
                 static_cast<int>(threadIdx.x), kThreads);
}

/// Elements i .. i + 3 of a row of n, zeros behind it; i is a multiple of 4, and below n where rows are blocks.
template <DType kType> FATHOM_DEVICE float4 four_of_row(Bytes row, int i, int n, const Codebooks& books) {
  if constexpr (weight_layout(kType).block_elements > 1) return four_elements<kType>(row, i, books);
  auto at = [&](int k) {
    const int there = min(k, n - 1);
    const float x = element<kType>(row, there / 32, there % 32, books);
    return k < n ? x : 0.0F;
  };
  return make_float4(at(i), at(i + 1), at(i + 2), at(i + 3));
}

/// out[t, h, c] = sum_n q[t, h, n] w[h, n, c]: a sum over rows. Blocks of 32 columns, four to a lane; a warp takes four
/// of every 32 rows. Blocks behind those do the work `beside`, which needs nothing of theirs.
template <DType kType, int kEach>
FATHOM_KERNEL(kThreads, 1)
absorb_rows_kernel(HeadWeights w, const float* q, int64_t q_token, int64_t q_head, float* out, int n_rows,
                   int n_columns, int n_heads, int n_tokens, Codebooks books, RowsAndHeads beside) {
  FATHOM_SHARED(float, sums, kWarps* kEach * 32);
  const int block = static_cast<int>(blockIdx.x), n_own = head_blocks(n_columns, n_heads, n_tokens),
            n_parts = (n_columns + 31) / 32;
  const HeadBlock at(block, n_parts, n_heads, kEach);
  if (block < n_own) prefetch_head(w, at, n_parts, n_rows);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (block >= n_own) return store_and_rotate_block(beside, block - n_own);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t h = at.head;
  const int column = 32 * at.part + lane % 8 * 4;
  float sum[kEach][4] = {};
  const Bytes head = w.data + h * w.head_bytes;
  constexpr int kAtOnce = kEach == 1 ? 4 : 1;  // rows of a lane whose loads are under way together
  for (int first = 4 * warp + lane / 8; first < n_rows; first += 4 * kWarps * kAtOnce) {
    float4 x[kAtOnce];
    float own[kAtOnce][kEach];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int n = min(first + 4 * kWarps * i, n_rows - 1);
      x[i] = four_of_row<kType>(head + n * w.row_bytes, column, n_columns, books);
#pragma unroll
      for (int j = 0; j < kEach; ++j) own[i][j] = q[min(at.first + j, n_tokens - 1) * q_token + h * q_head + n];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool is_there = first + 4 * kWarps * i < n_rows;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float y = is_there ? own[i][j] : 0.0F;
        sum[j][0] = fmaf(y, x[i].x, sum[j][0]), sum[j][1] = fmaf(y, x[i].y, sum[j][1]);
        sum[j][2] = fmaf(y, x[i].z, sum[j][2]), sum[j][3] = fmaf(y, x[i].w, sum[j][3]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[j][i] += __shfl_xor_sync(0xffffffffu, sum[j][i], 16);
      sum[j][i] += __shfl_xor_sync(0xffffffffu, sum[j][i], 8);
      if (lane < 8) sums[(warp * kEach + j) * 32 + 4 * lane + i] = sum[j][i];
    }
  }
  __syncthreads();
  const int j = warp;  // a warp for each token
  if (j >= kEach || at.first + j >= n_tokens || 32 * at.part + lane >= n_columns) return;
  float y = 0;
  for (int part = 0; part < kWarps; ++part) y += sums[(part * kEach + j) * 32 + lane];
  out[((at.first + j) * n_heads + h) * n_columns + 32 * at.part + lane] = y;
}

/// out[t, h, r] = w[h, r, :] . x[t, h, :]. Blocks of 32 n_rounds rows, 32 at a time, four to a warp, four neighbouring
/// columns to a lane. With kMerge x is folded from attention's pieces, and the result is also written in int8 if there
/// is room for it (whole blocks of 32 rows); without, blocks behind its own do the work `beside`.
template <DType kType, bool kMerge, int kEach>
FATHOM_KERNEL(kThreads, 1)
head_rows_kernel(HeadWeights w, const float* x, int64_t x_token, int64_t x_head, Partials pieces, const int* positions,
                 float* out, int n_rows, int n_columns, int n_heads, int n_tokens, int n_rounds,
                 QuantizedRows quantized, Codebooks books, RowsAndHeads beside) {
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(float, results, kEach* kRowsEach);
  const int stride = (n_columns + 3) / 4 * 4;
  float* vectors = reinterpret_cast<float*>(shared);            // [kEach, stride], zeros behind a row
  float* totals = vectors + kEach * stride;                     // [kEach], kMerge
  float2* steps = reinterpret_cast<float2*>(totals + kTokens);  // [kEach, n_pieces], kMerge
  const int block = static_cast<int>(blockIdx.x), n_own = head_blocks(n_rows, n_heads, n_tokens, n_rounds),
            n_parts = (n_rows + kRowsEach * n_rounds - 1) / (kRowsEach * n_rounds);
  const HeadBlock at(block, n_parts, n_heads, kEach);
  if (block < n_own) prefetch_head(w, at, n_parts, n_rows);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if constexpr (!kMerge) {
    if (block >= n_own) return store_and_rotate_block(beside, block - n_own);
  }
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first = at.first, n_here = min(kEach, n_tokens - first);
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
    const int pairs = stride / 2;
    for (int i = thread; i < n_here * pairs; i += kThreads) {
      const int j = i / pairs, d = i % pairs * 2;
      float2 sum = make_float2(0, 0);
      if (d < n_columns) {
        const float* values = pieces.values + ((first + j) * n_heads + h) * pieces.n_pieces * n_columns + d;
        sum = folded_pair(steps + j * pieces.n_pieces, partials_used(pieces, positions[first + j]), values, n_columns);
      }
      vectors[j * stride + d] = sum.x / totals[j];
      vectors[j * stride + d + 1] = sum.y / totals[j];
    }
  } else {
    for (int i = thread; i < n_here * stride; i += kThreads) {
      const int j = i / stride, d = i % stride;
      vectors[i] = d < n_columns ? x[(first + j) * x_token + h * x_head + d] : 0.0F;
    }
  }
  __syncthreads();
  constexpr int kRowsOfWarp = kRowsEach / kWarps;
  for (int round = 0; round < n_rounds; ++round) {
    const int part = at.part * n_rounds + round;
    if (part * kRowsEach >= n_rows) return;
    Bytes rows[kRowsOfWarp];
    float sum[kRowsOfWarp][kEach] = {};
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
      rows[i] = w.data + h * w.head_bytes + min(part * kRowsEach + i * kWarps + warp, n_rows - 1) * w.row_bytes;
#pragma unroll(kEach == 1 && decodes_fours(kType) ? 2 : 1)
    for (int d = 4 * lane; d < n_columns; d += 128) {
      float4 weight[kRowsOfWarp];
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) weight[i] = four_of_row<kType>(rows[i], d, n_columns, books);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float4 v = *reinterpret_cast<const float4*>(vectors + j * stride + d);
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i)
          sum[i][j] =
              fmaf(weight[i].w, v.w, fmaf(weight[i].z, v.z, fmaf(weight[i].y, v.y, fmaf(weight[i].x, v.x, sum[i][j]))));
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const int in_block = i * kWarps + warp, r = part * kRowsEach + in_block;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const float y = warp_sum(sum[i][j]);
        if (lane != 0 || j >= n_here) continue;
        if (r < n_rows) out[((first + j) * n_heads + h) * n_rows + r] = y;
        if constexpr (kMerge) results[j * kRowsEach + in_block] = y;
      }
    }
    if constexpr (kMerge) {
      if (quantized.q == nullptr) continue;
      __syncthreads();
      if (warp < n_here) {  // a warp for each token
        const int64_t to = (((first + warp) * n_heads + h) * n_rows) / kRowsEach + part;
        quantize_block(results[warp * kRowsEach + lane], quantized.q + to * kRowsEach, quantized.scales + to);
      }
      __syncthreads();
    }
  }
}

/// Whether the tensor core kernel takes these sizes.
bool use_mma(const LatentAttentionArgs& a) {
  return a.latent_dim() == kLatent && a.rope_dim() == kLatentRow - kLatent && is_mma_cache(a.cache.dtype);
}

/// Shared bytes of the vectors of head_rows_kernel.
size_t vector_bytes(int n_columns, int n_tokens) {
  return sizeof(float) * static_cast<size_t>((n_tokens == 1 ? 1 : kTokens) * ((n_columns + 3) / 4 * 4));
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
  FATHOM_CHECK(reinterpret_cast<uintptr_t>(t.data) % 4 == 0, "weights of heads begin at words");
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
      launch_overlapped(n_tokens == 1 ? absorb_rows_kernel<kType, 1> : absorb_rows_kernel<kType, kTokens>, grid,
                        kThreads, 0, c.stream, head_weights(a.kv_b, 0, nope + value), unrotated, q_token, q_head, query,
                        nope, latent, n_heads, n_tokens, c.books, beside);
    } else {
      launch_overlapped(n_tokens == 1 ? head_rows_kernel<kType, false, 1> : head_rows_kernel<kType, false, kTokens>,
                        grid, kThreads, vector_bytes(nope, n_tokens), c.stream, head_weights(a.k_b, 0, latent),
                        unrotated, q_token, q_head, Partials{}, static_cast<const int*>(nullptr), query, latent, nope,
                        n_heads, n_tokens, 1, QuantizedRows{}, c.books, beside);
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
    const int n_rounds = rounds_for(n_heads, n_tokens);
    const auto values_grid = static_cast<unsigned>(head_blocks(value, n_heads, n_tokens, n_rounds));
    const HeadWeights w = a.kv_b ? head_weights(a.kv_b, nope, nope + value) : head_weights(a.v_b, 0, value);
    constexpr DType kType = decltype(type)::value;
    const size_t shared = vector_bytes(latent, n_tokens) + sizeof(float) * kTokens +
                          sizeof(float2) * static_cast<size_t>((n_tokens == 1 ? 1 : kTokens) * pieces.n_pieces);
    launch_overlapped(n_tokens == 1 ? head_rows_kernel<kType, true, 1> : head_rows_kernel<kType, true, kTokens>,
                      values_grid, kThreads, shared, c.stream, w, static_cast<const float*>(nullptr), int64_t{0},
                      int64_t{0}, pieces, a.step.positions.as<const int>(), a.out.as<float>(), value, latent, n_heads,
                      n_tokens, n_rounds, value % kRowsEach == 0 ? quantized : QuantizedRows{}, c.books,
                      RowsAndHeads{});
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
