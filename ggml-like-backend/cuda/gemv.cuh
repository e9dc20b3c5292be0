// Kernels for steps of up to kGemvTokens tokens, which read every weight once (where there are more columns than a lane
// has sums for again, from the cache): linear layers; gate and up of feed-forward networks; down with the sum over
// experts.
#pragma once

#include "cuda/dot.cuh"
#include "cuda/last_block.cuh"
#include "cuda/norm.cuh"
#include "cuda/route.cuh"

namespace fathom::cuda {

constexpr int kRowPair =
    2;  ///< rows that share the activations a lane loads; more cost registers, not less traffic to memory
constexpr int kColumnsAtOnce = 8;  ///< sums that a lane holds for each row; one column has a kernel of its own
constexpr int kFfnColumns =
    4;  ///< the same for experts, which have two tokens of 16 on average: more warps fit on an SM instead

// ---- what the last block of a step of one token does ----

/// The norm of a finished row of n.
FATHOM_DEVICE void norm_result(const float* row, int n, const NormOfResult& norm) {
  FATHOM_SHARED(float, scratch, kNormShares / 32);
  norm_row(row, norm.weight, norm.out, n, norm.eps, norm.quantized.q, norm.quantized.scales, scratch);
}

// ---- linear ----

template <typename Format, int kColumns>
FATHOM_KERNEL(128, kColumns == 1 ? 6 : 4)
linear_gemv_kernel(LinearLaunch l, int lanes) {
  let_next_kernel_start();
  const LinearTask& task = l.tasks[blockIdx.y];
  const int lane = static_cast<int>(threadIdx.x % 32), head = static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32), rows_of_warp = 32 / lanes * kRowPair,
            rows_of_block = rows_of_warp * static_cast<int>(blockDim.x / 32);
  if (static_cast<int>(blockIdx.x) * rows_of_block >= task.w.n_rows) return wait_for_previous_kernel();
  const bool is_idle = warp * rows_of_warp >= task.w.n_rows;  // behind the last row, in the last block
  const int first_row = warp * rows_of_warp + lane / lanes * kRowPair, n_columns = is_idle ? 0 : l.n_columns;
  const uint8_t* rows[kRowPair];
#pragma unroll
  for (int r = 0; r < kRowPair; ++r) {
    rows[r] = task.w.data + head * task.w.matrix_bytes + min(first_row + r, task.w.n_rows - 1) * task.w.row_bytes;
  }
  if (!is_idle) prefetch_rows<Format>(rows, task.w.k, lane % lanes, lanes);
  wait_for_previous_kernel();
  for (int c0 = 0; c0 < n_columns; c0 += kColumns) {
    float sum[kRowPair][kColumns];
    const int n = min(kColumns, n_columns - c0);
    dot_rows<Format>(rows, task.w.k, lane % lanes, lanes, l.x, StridedRows{c0 * l.n_heads + head, l.n_heads}, n,
                     l.grids, sum);
    if (lane % lanes != 0) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int r = 0; r < kRowPair; ++r) {
        const int row = first_row + r;
        if (c >= n || row >= task.w.n_rows) continue;
        const float added = task.add != nullptr ? task.add[(c0 + c) * task.add_stride + row] : 0.0F;
        task.out[(c0 + c) * task.out_stride + head * task.out_head + row] = sum[r][c] + added;
      }
    }
  }
  if constexpr (kColumns == 1) {
    if (l.counter == nullptr || static_cast<int>(blockIdx.y) != l.finished) return;
    if (!is_last_block(l.counter, (task.w.n_rows + rows_of_block - 1) / rows_of_block)) return;
    if (l.norm.out != nullptr) norm_result(task.out, task.w.n_rows, l.norm);
    if constexpr (Format::kIsFloat) {
      FATHOM_DYNAMIC_SHARED(shared);
      if (l.route.ids != nullptr && threadIdx.x < 32)
        route_token(task.out, l.route.bias, l.route.ids, l.route.weights, reinterpret_cast<float*>(shared),
                    l.route.sizes);
    }
  }
}

template <typename Format> void launch_linear_gemv(const LinearLaunch& l) {
  int most_rows = 0;
  for (int i = 0; i < l.n_tasks; ++i) most_rows = std::max(most_rows, l.tasks[i].w.n_rows);
  const int lanes = lanes_for(l.tasks[0].w.n_rows, chunks_of_row(Format::kDType, l.tasks[0].w.k));
  const int rows_of_warp = 32 / lanes * kRowPair, n_warps = (most_rows + rows_of_warp - 1) / rows_of_warp;
  const int warps = n_warps * l.n_tasks * l.n_heads >= 1024  ? 4
                    : n_warps * l.n_tasks * l.n_heads >= 512 ? 2
                                                             : 1;  // small blocks where there are few
  const dim3 grid((n_warps + warps - 1) / warps, l.n_tasks, l.n_heads);
  if (l.n_columns == 1) {
    const size_t shared = l.route.ids != nullptr ? sizeof(float) * static_cast<size_t>(route_floats(l.route.sizes)) : 0;
    launch_overlapped(&linear_gemv_kernel<Format, 1>, grid, 32 * warps, shared, l.stream, l, lanes);
  } else {
    launch_overlapped(&linear_gemv_kernel<Format, kColumnsAtOnce>, grid, 32 * warps, 0, l.stream, l, lanes);
  }
}

// ---- feed-forward networks ----
//
// A block computes kTileRows rows of one network for the tokens that use it. blockIdx.y counts the experts that have a
// token, as many as there can be (the blocks of those that are not end at once), then the shared experts, cut into
// pieces of as many rows.

constexpr int kTileRows = 32;  ///< one block of activations in int8
constexpr int kFfnThreads = 256;
constexpr int kRowsOfWarp = kTileRows / (kFfnThreads / 32);
constexpr int kGateLanes = 32 / kRowsOfWarp;             ///< a row of gate and the same row of up for every 8 lanes
constexpr int kDownLanes = 32 * kRowPair / kRowsOfWarp;  ///< a pair of rows for every 16 lanes

/// What a block works on.
struct FfnPart {
  bool shared;
  int expert, first, n_columns;  ///< first: into the order of routes
  int tile;                      ///< of kTileRows rows
};

/// blockIdx.y says: whether a block is of the shared experts, and of which tile.
FATHOM_DEVICE bool is_shared(int n_slots) { return static_cast<int>(blockIdx.y) >= n_slots; }
FATHOM_DEVICE int shared_tile(int n_slots) {
  return (static_cast<int>(blockIdx.y) - n_slots) * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
}

/// Asks for a tile of rows of two matrices (the second may be empty) while an earlier kernel still runs.
FATHOM_DEVICE void prefetch_tile(const WeightRows& a, const WeightRows& b, int tile) {
  const int first = tile * kTileRows, n = min(kTileRows, a.n_rows - first);
  if (n <= 0) return;
  prefetch_block(a.data + first * a.row_bytes, n * a.row_bytes);
  if (b.data != nullptr) prefetch_block(b.data + first * b.row_bytes, n * b.row_bytes);
}

/// False if the block has nothing to do.
FATHOM_DEVICE bool find_part(const FfnLaunch& l, int n_slots, FfnPart& part) {
  const int y = static_cast<int>(blockIdx.y);
  if (is_shared(n_slots)) {
    part = {true, 0, 0, l.n_tokens, shared_tile(n_slots)};
    return true;
  }
  if (l.expert_ids != nullptr) {
    part = {false, l.expert_ids[y], y, 1, static_cast<int>(blockIdx.x)};
    return true;
  }
  if (y >= *l.groups.n_groups) return false;
  const int first = l.groups.first[y];
  part = {false, l.groups.expert[y], first, l.groups.first[y + 1] - first, static_cast<int>(blockIdx.x)};
  return true;
}

/// Column c of a part: the token for the shared experts, else the route.
FATHOM_DEVICE int column_of(const FfnLaunch& l, const FfnPart& part, int c) {
  if (part.shared) return c;
  return l.expert_ids != nullptr ? part.first : l.groups.order[part.first + c];
}

inline int routed_slots(const FfnLaunch& l) {
  if (!l.routed) return 0;
  return l.expert_ids != nullptr ? l.n_used : std::min(l.n_experts, l.n_tokens * l.n_used);
}

template <typename Format, int kColumns> FATHOM_KERNEL(kFfnThreads, 3) gate_up_gemv_kernel(FfnLaunch l, int n_slots) {
  FATHOM_SHARED(int, tokens, kColumns);
  FATHOM_SHARED(int, hidden_rows, kColumns);
  FATHOM_SHARED(float, values, kColumns* kTileRows);
  if (is_shared(n_slots)) prefetch_tile(l.shared_weights.gate, l.shared_weights.up, shared_tile(n_slots));
  wait_for_previous_kernel();
  let_next_kernel_start();  // not before: the next kernel looks at the expert ids to see what it will read
  FfnPart part;
  if (!find_part(l, n_slots, part)) return;
  const FfnWeights& w = part.shared ? l.shared_weights : l.experts;
  const int width = w.gate.n_rows, first_row = part.tile * kTileRows;
  if (first_row >= width) return;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const uint8_t* gate = w.gate.data + part.expert * w.gate.matrix_bytes;
  const uint8_t* up = w.up.data + part.expert * w.up.matrix_bytes;

  for (int c0 = 0; c0 < part.n_columns; c0 += kColumns) {
    const int n = min(kColumns, part.n_columns - c0);
    if (tid < n) {
      const int route = column_of(l, part, c0 + tid);
      tokens[tid] = part.shared ? route : route / l.n_used;
      hidden_rows[tid] = route;
    }
    __syncthreads();
    const int in_tile = warp * kRowsOfWarp + lane / kGateLanes, row = min(first_row + in_tile, width - 1);
    const uint8_t* rows[2] = {gate + row * w.gate.row_bytes, up + row * w.up.row_bytes};
    float sum[2][kColumns];
    dot_rows<Format>(rows, w.gate.k, lane % kGateLanes, kGateLanes, l.x, ListedRows{tokens}, n, l.grids, sum);
    if (lane % kGateLanes == 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (c < n) values[c * kTileRows + in_tile] = sum[0][c] / (1.0F + expf(-sum[0][c])) * sum[1][c];
      }
    }
    __syncthreads();
    const int at = part.shared ? 1 : 0;
    for (int c = warp; c < n; c += kFfnThreads / 32) {
      const float v = values[c * kTileRows + lane];
      const int64_t row = hidden_rows[c];
      if (l.hidden_q[at].q != nullptr) {
        quantize_block(v, l.hidden_q[at].q + row * width + first_row,
                       l.hidden_q[at].scales + (row * width + first_row) / 32);
      } else if (first_row + lane < width) {
        l.hidden[at][row * width + first_row + lane] = v;
      }
    }
    __syncthreads();
  }
}

template <typename Format> void launch_gate_up_gemv(const FfnLaunch& l) {
  const WeightRows& w = l.routed ? l.experts.gate : l.shared_weights.gate;
  const int tiles = (w.n_rows + kTileRows - 1) / kTileRows, slots = routed_slots(l);
  const int shared_tiles = l.shared ? (l.shared_weights.gate.n_rows + kTileRows - 1) / kTileRows : 0;
  const dim3 grid(tiles, slots + (shared_tiles + tiles - 1) / tiles);
  if (l.n_tokens == 1) {
    launch_overlapped(&gate_up_gemv_kernel<Format, 1>, grid, kFfnThreads, 0, l.stream, l, slots);
  } else {
    launch_overlapped(&gate_up_gemv_kernel<Format, kFfnColumns>, grid, kFfnThreads, 0, l.stream, l, slots);
  }
}

/// out[t, d] = sum of weight * output over the token's routes in their order, + the shared experts', + add. Every token
/// of a tile of rows, by all threads of the block. The outputs come from other SMs: the loads go past this SM's cache.
FATHOM_DEVICE void sum_outputs(const FfnLaunch& l, int hidden_size, int first_row, int n_rows) {
  const int n_routes = l.n_tokens * l.n_used;
  for (int i = static_cast<int>(threadIdx.x); i < l.n_tokens * n_rows; i += static_cast<int>(blockDim.x)) {
    const int t = i / n_rows, d = first_row + i % n_rows;
    if (d >= hidden_size) continue;
    float sum = 0;
    for (int j = 0; j < l.n_used; ++j) {
      sum = fmaf(l.expert_weights[t * l.weights_stride + j],
                 __ldcg(l.outputs + static_cast<int64_t>(t * l.n_used + j) * hidden_size + d), sum);
    }
    if (l.has_shared) sum += __ldcg(l.outputs + static_cast<int64_t>(n_routes + t) * hidden_size + d);
    if (l.add != nullptr) sum += l.add[t * l.add_stride + d];
    l.out[t * l.out_stride + d] = sum;
  }
}

template <typename Format, int kColumns> FATHOM_KERNEL(kFfnThreads, 3) down_gemv_kernel(FfnLaunch l, int n_slots) {
  FATHOM_SHARED(int, rows_of_x, kColumns);
  let_next_kernel_start();
  if (is_shared(n_slots)) {
    prefetch_tile(l.shared_weights.down, {}, shared_tile(n_slots));
  } else if (l.expert_ids != nullptr) {
    // The kernel before waited for them; were they a step old, other weights would be asked for, and nothing worse.
    WeightRows down = l.experts.down;
    down.data += min(max(__ldcg(l.expert_ids + blockIdx.y), 0), l.n_experts - 1) * down.matrix_bytes;
    prefetch_tile(down, {}, static_cast<int>(blockIdx.x));
  }
  wait_for_previous_kernel();
  FfnPart part;
  if (!find_part(l, n_slots, part)) return;
  const FfnWeights& w = part.shared ? l.shared_weights : l.experts;
  const int hidden_size = w.down.n_rows, first_row = part.tile * kTileRows, n_routes = l.n_tokens * l.n_used;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const uint8_t* down = w.down.data + part.expert * w.down.matrix_bytes;
  const int which = part.shared ? 1 : 0;
  const ActRows x{l.hidden_q[which].q, l.hidden_q[which].scales, l.hidden[which], w.down.k};

  for (int c0 = 0; c0 < part.n_columns; c0 += kColumns) {
    const int n = min(kColumns, part.n_columns - c0);
    if (tid < n) rows_of_x[tid] = column_of(l, part, c0 + tid);
    __syncthreads();
    const int row = first_row + warp * kRowsOfWarp + lane / kDownLanes * kRowPair;
    const uint8_t* rows[kRowPair];
#pragma unroll
    for (int r = 0; r < kRowPair; ++r) rows[r] = down + min(row + r, hidden_size - 1) * w.down.row_bytes;
    float sum[kRowPair][kColumns];
    dot_rows<Format>(rows, w.down.k, lane % kDownLanes, kDownLanes, x, ListedRows{rows_of_x}, n, l.grids, sum);
    if (lane % kDownLanes == 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int r = 0; r < kRowPair; ++r) {
          if (c >= n || row + r >= hidden_size) continue;
          l.outputs[static_cast<int64_t>((part.shared ? n_routes : 0) + rows_of_x[c]) * hidden_size + row + r] =
              sum[r][c];
        }
      }
    }
    __syncthreads();
  }

  // The last of the networks to finish a tile of rows adds all of them up, in the order of the routes.
  const int routed = l.expert_ids != nullptr ? l.n_used : l.n_used > 0 ? *l.groups.n_groups : 0;
  if (!is_last_block(&l.counters[part.tile], routed + (l.has_shared ? 1 : 0))) return;
  sum_outputs(l, hidden_size, first_row, kTileRows);
  if constexpr (kColumns == 1) {
    if (l.norm.out == nullptr) return;
    if (is_last_block(l.all_tiles, static_cast<int>(gridDim.x))) norm_result(l.out, hidden_size, l.norm);
  }
}

template <typename Format> void launch_down_gemv(const FfnLaunch& l) {
  const WeightRows& w = l.routed ? l.experts.down : l.shared_weights.down;
  const int tiles = (w.n_rows + kTileRows - 1) / kTileRows, slots = routed_slots(l);
  const dim3 grid(tiles, slots + (l.shared ? 1 : 0));
  if (l.n_tokens == 1) {
    launch_overlapped(&down_gemv_kernel<Format, 1>, grid, kFfnThreads, 0, l.stream, l, slots);
  } else {
    launch_overlapped(&down_gemv_kernel<Format, kFfnColumns>, grid, kFfnThreads, 0, l.stream, l, slots);
  }
}

}  // namespace fathom::cuda
