// What the attention kernels share: where cached rows are, partial results, and a kernel in f32 for any sizes and cache
// types.
//
// A block takes a group of heads of one token and a piece of the rows the token sees (split_plan.h), and leaves for
// each head
//   values [value_dim]: sum over its rows of exp(score - largest) * value, and (largest, sum of exp(score - largest)).
// The kernel after it folds the pieces, first to last; in large steps the block itself does, in the same arithmetic.
#pragma once

#include "cuda/paged_rows.cuh"
#include "cuda/split_plan.h"

namespace fathom::cuda {

/// Partial results, [T, H, n_pieces] of each.
struct Partials {
  float* values;  ///< [.., value_dim]
  float2* stats;  ///< largest score, sum
  int n_pieces;   ///< room for; 1 if blocks fold all pieces
  int most, tile_rows;
  bool is_folded;
  SeenCounts counts{};
};

/// Of a token at `position`: how many partial results there are.
FATHOM_DEVICE int partials_used(const Partials& p, int position) {
  const int n = rows_seen(p.counts, position);
  return p.is_folded ? 1 : pieces_used(n, rows_each(n, p.most, p.tile_rows));
}

/// By what the sum so far and the next piece are multiplied when the next piece joins.
struct FoldStep {
  float largest, older, newer;
};

FATHOM_DEVICE FoldStep fold_step(float largest, float next) {
  const float most = fmaxf(largest, next);
  return {most, expf(largest - most), expf(next - most)};
}

FATHOM_DEVICE float fold(float sum, float next, const FoldStep& step) {
  return fmaf(next, step.newer, sum * step.older);
}

/// Where a head's query comes from: element i < n_first of (token, head) at first[token * first_token + head *
/// first_head + i], the others likewise at second.
struct QueryParts {
  const float* first;
  const float* second;
  int64_t first_token, first_head, second_token, second_head;
  int n_first, n_second;
};

/// Of a cached row as a head sees it: elements [0, n_key_part) come from key_at + head * per_head on, the rest of the
/// tile's width from value_at + head * per_head on. Latents: one part for all heads, whose first elements are the
/// values as well.
struct RowParts {
  int n_key_part, width;
  int key_at, value_at, per_head;
  int values_in_tile;  ///< first element of the values in the tile
};

struct AttendSizes {
  int n_heads, value_dim;
  float scale;
};

constexpr int kAttendThreads = 128;
constexpr int kAttendRows = 8;  ///< rows of a tile

/// Shared bytes of attend_kernel: queries, a tile of rows, weights, and three numbers for each head.
constexpr size_t attend_shared_bytes(int n_heads, int key_dim, int width) {
  return sizeof(float) *
         static_cast<size_t>(n_heads * key_dim + kAttendRows * width + n_heads * kAttendRows + 3 * n_heads);
}

/// Block (piece, group of kHeads heads, token), with kFold (0, group, token) for all pieces. A thread owns kValues
/// values of each head.
template <DType kType, int kHeads, int kValues, bool kFold>
FATHOM_KERNEL(kAttendThreads, kFold ? 2 : 3)
attend_kernel(QueryParts query, SeenRows rows, RowParts parts, AttendSizes sizes, Partials out) {
  FATHOM_DYNAMIC_SHARED(shared);
  const int key_dim = query.n_first + query.n_second;
  float* q = reinterpret_cast<float*>(shared);        // [kHeads, key_dim], scaled
  float* tile = q + kHeads * key_dim;                 // [kAttendRows, width]
  float* weights = tile + kAttendRows * parts.width;  // [kHeads, kAttendRows]
  float* largest = weights + kHeads * kAttendRows;    // [kHeads]
  float* total = largest + kHeads;
  float* shrink = total + kHeads;  // by what older sums are multiplied
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int64_t t = blockIdx.z;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  constexpr int kWarps = kAttendThreads / 32;
  const TokenRows token(rows, t);
  const int n_visible = token.n;
  const int each = rows_each(n_visible, out.most, kAttendRows);
  const int first_piece = kFold ? 0 : static_cast<int>(blockIdx.x),
            last_piece = kFold ? pieces_used(n_visible, each) : first_piece + 1;
  if (first_piece * each >= n_visible) return;

  for (int i = thread; i < kHeads * key_dim; i += kAttendThreads) {
    const int h = first_head + i / key_dim, d = i % key_dim;
    float x = 0;
    if (h < sizes.n_heads) {
      x = d < query.n_first ? query.first[t * query.first_token + h * query.first_head + d]
                            : query.second[t * query.second_token + h * query.second_head + d - query.n_first];
    }
    q[i] = x * sizes.scale;
  }
  // Several heads only where all share a row.
  const int key_at = parts.key_at + first_head * parts.per_head,
            value_at = parts.value_at + first_head * parts.per_head - parts.n_key_part;
  float folded[kFold ? kHeads : 1][kFold ? kValues : 1], folded_largest[kFold ? kHeads : 1],
      folded_total[kFold ? kHeads : 1];
  if constexpr (kFold) {
    for (int h = 0; h < kHeads; ++h) {
      folded_largest[h] = -INFINITY, folded_total[h] = 0;
#pragma unroll
      for (int v = 0; v < kValues; ++v) folded[h][v] = 0;
    }
  }

  for (int piece = first_piece; piece < last_piece; ++piece) {
    const int begin = piece * each, end = min(n_visible, begin + each);
    if (thread < kHeads) largest[thread] = -INFINITY, total[thread] = 0;
    float sums[kHeads][kValues];
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) sums[h][v] = 0;
    }
    for (int first = begin; first < end; first += kAttendRows) {
      __syncthreads();
      for (int s = warp; s < kAttendRows; s += kWarps) {
        const bool is_there = first + s < end;
        const Bytes row = seen_row(rows, token, is_there ? first + s : begin);
        for (int e = lane; e < parts.width; e += 32) {
          const int i = e + (e < parts.n_key_part ? key_at : value_at);
          tile[s * parts.width + e] = is_there ? element<kType>(row, i / 32, i % 32, Codebooks{}) : 0.0F;
        }
      }
      __syncthreads();
      for (int pair = warp; pair < kHeads * kAttendRows; pair += kWarps) {
        const int h = pair / kAttendRows, s = pair % kAttendRows;
        float score = 0;
        for (int d = lane; d < key_dim; d += 32) score = fmaf(q[h * key_dim + d], tile[s * parts.width + d], score);
        score = warp_sum(score);
        if (lane == 0) weights[pair] = first + s < end ? score : -INFINITY;
      }
      __syncthreads();
      if (thread < kHeads) {
        float* w = weights + thread * kAttendRows;
        float most = largest[thread];
        for (int s = 0; s < kAttendRows; ++s) most = fmaxf(most, w[s]);
        shrink[thread] = expf(largest[thread] - most);
        float sum = 0;
        for (int s = 0; s < kAttendRows; ++s) {
          w[s] = expf(w[s] - most);
          sum += w[s];
        }
        total[thread] = fmaf(total[thread], shrink[thread], sum);
        largest[thread] = most;
      }
      __syncthreads();
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const int d = thread + v * kAttendThreads;
        if (d >= sizes.value_dim) continue;
        for (int h = 0; h < kHeads; ++h) sums[h][v] *= shrink[h];
        for (int s = 0; s < kAttendRows; ++s) {
          const float x = tile[s * parts.width + parts.values_in_tile + d];
          for (int h = 0; h < kHeads; ++h) sums[h][v] = fmaf(weights[h * kAttendRows + s], x, sums[h][v]);
        }
      }
    }
    if constexpr (kFold) {
      for (int h = 0; h < kHeads; ++h) {
        const FoldStep step = fold_step(folded_largest[h], largest[h]);
        folded_largest[h] = step.largest;
        folded_total[h] = fold(folded_total[h], total[h], step);
#pragma unroll
        for (int v = 0; v < kValues; ++v) folded[h][v] = fold(folded[h][v], sums[h][v], step);
      }
      __syncthreads();  // the next piece begins with other numbers
    } else {
      for (int h = 0; h < kHeads; ++h) {
        if (first_head + h >= sizes.n_heads) continue;
        const int64_t at = (t * sizes.n_heads + first_head + h) * out.n_pieces + piece;
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          const int d = thread + v * kAttendThreads;
          if (d < sizes.value_dim) out.values[at * sizes.value_dim + d] = sums[h][v];
        }
        if (thread == 0) out.stats[at] = make_float2(largest[h], total[h]);
      }
    }
  }
  if constexpr (kFold) {
    for (int h = 0; h < kHeads; ++h) {
      if (first_head + h >= sizes.n_heads) continue;
      const int64_t at = t * sizes.n_heads + first_head + h;
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const int d = thread + v * kAttendThreads;
        if (d < sizes.value_dim) out.values[at * sizes.value_dim + d] = folded[h][v];
      }
      if (thread == 0) out.stats[at] = make_float2(folded_largest[h], folded_total[h]);
    }
  }
}

/// Prepares the fold of a (token, head)'s pieces: steps[s] for each, by a whole warp. Returns the largest score of all.
FATHOM_DEVICE float fold_steps(const float2* stats, int n_used, float2* steps, int lane) {
  float before = -INFINITY;  // largest of all pieces before this round of 32
  for (int first = 0; first < n_used; first += 32) {
    const float own = first + lane < n_used ? stats[first + lane].x : -INFINITY;
    float largest = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const float other = __shfl_up_sync(0xffffffffU, largest, offset);
      if (lane >= offset) largest = fmaxf(largest, other);
    }
    float older = __shfl_up_sync(0xffffffffU, largest, 1);
    older = lane == 0 ? before : fmaxf(older, before);
    if (first + lane < n_used) {
      const FoldStep step = fold_step(older, own);
      steps[first + lane] = make_float2(step.older, step.newer);
    }
    before = fmaxf(before, __shfl_sync(0xffffffffU, largest, 31));
  }
  return before;
}

/// Column d of the folded pieces, `value_of(s)` giving piece s's.
template <typename ValueOf> FATHOM_DEVICE float folded_sum(const float2* steps, int n_used, ValueOf&& value_of) {
  float sum = 0;
  for (int s = 0; s < n_used; ++s) sum = fmaf(value_of(s), steps[s].y, sum * steps[s].x);
  return sum;
}

/// Columns d and d + 1 of pieces that are n_columns floats each; `values` points at the first piece's column d.
FATHOM_DEVICE float2 folded_pair(const float2* steps, int n_used, const float* values, int n_columns) {
  float2 sum = make_float2(0, 0);
#pragma unroll 16
  for (int s = 0; s < n_used; ++s) {
    const float2 v = *reinterpret_cast<const float2*>(values + static_cast<int64_t>(s) * n_columns);
    const float2 step = steps[s];
    sum = make_float2(fmaf(v.x, step.y, sum.x * step.x), fmaf(v.y, step.y, sum.y * step.x));
  }
  return sum;
}

}  // namespace fathom::cuda
