// Kernels for steps of up to kGemvTokens tokens, which read every weight once (where there are more columns than a lane
// has sums for again, from the cache): linear layers; gate and up of feed-forward networks; down with the sum over
// experts.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "cuda/dot.cuh"
#include "cuda/last_block.cuh"
#include "cuda/norm.cuh"
#include "cuda/route.cuh"
#include "cuda/streams.cuh"

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

/// The warps' sums, in their order; thread 0 gets the total. All threads of the block.
template <int kColumns> FATHOM_DEVICE void sum_over_warps(float (&sum)[kRowPair][kColumns]) {
  constexpr int kSums = kRowPair * kColumns;
  FATHOM_SHARED(float, of_warps, 8 * kSums);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  __syncthreads();  // the last total may still be read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) of_warps[warp * kSums + i] = sum[i / kColumns][i % kColumns];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < static_cast<int>(blockDim.x / 32); ++w) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i / kColumns][i % kColumns] += of_warps[w * kSums + i];
  }
}

// Blocks of 256 threads on an SM that kernels are compiled for. Three leave a thread 80 registers: too few for several
// columns, and for one column of formats that look weights up, or, beside what experts need, of those that load most;
// two steps are under way together.
constexpr bool looks_up(DType type) {
  switch (type) {
    case DType::kIQ4_NL:
    case DType::kMXFP4:
    case DType::kIQ4_XS:
    case DType::kIQ3_XXS:
    case DType::kIQ3_S:
    case DType::kIQ2_XXS:
    case DType::kIQ2_XS:
    case DType::kIQ2_S:
    case DType::kIQ1_S:
    case DType::kIQ1_M: return true;
    default: return false;
  }
}
constexpr int linear_blocks(DType type, int n_columns) { return n_columns > 1 || looks_up(type) ? 2 : 3; }
constexpr int ffn_blocks(DType type, int n_columns) {
  const WeightLayout layout = weight_layout(type);
  const bool loads_much = layout.block_elements == 256 ? layout.n_planes > 2 : layout.block_bytes > 32;
  return loads_much ? 2 : linear_blocks(type, n_columns);
}

constexpr int kLinearThreads = 256;

/// Threads of a block in groups of `lanes`, a pair of rows each; plain weights alone may have lanes of several warps,
/// all of the block's.
template <typename Format, int kColumns>
FATHOM_KERNEL(kLinearThreads, linear_blocks(Format::kDType, kColumns))
linear_gemv_kernel(LinearLaunch l, int lanes_log2) {
  let_next_kernel_start();
  const LinearTask& task = l.tasks[blockIdx.y];
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.z), lanes = 1 << lanes_log2;
  const int rows_of_block = static_cast<int>(blockDim.x) >> lanes_log2 << 1,
            first_of_block = static_cast<int>(blockIdx.x) * rows_of_block, n_rows = task.w.n_rows;
  static_assert(kRowPair == 2);
  if (first_of_block >= n_rows) return wait_for_previous_kernel();
  const uint8_t* matrix = task.w.data + head * task.w.matrix_bytes;
  prefetch_run(matrix + first_of_block * task.w.row_bytes,
               min(rows_of_block, n_rows - first_of_block) * task.w.row_bytes, thread, static_cast<int>(blockDim.x));
  const int lane = thread & (lanes - 1), first_row = first_of_block + (thread >> lanes_log2) * kRowPair;
  const uint8_t* rows[kRowPair];
#pragma unroll
  for (int r = 0; r < kRowPair; ++r) rows[r] = matrix + min(first_row + r, n_rows - 1) * task.w.row_bytes;
  wait_for_previous_kernel();
  for (int c0 = 0; c0 < l.n_columns; c0 += kColumns) {
    float sum[kRowPair][kColumns];
    const int n = min(kColumns, l.n_columns - c0);
    dot_rows<Format>(rows, task.w.k, lane, lanes, l.x, StridedRows{c0 * l.n_heads + head, l.n_heads}, n, l.grids, sum);
    if constexpr (Format::kIsFloat) {
      if (lanes > 32) sum_over_warps(sum);
    }
    if (lane != 0) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int r = 0; r < kRowPair; ++r) {
        const int row = first_row + r;
        if (c >= n || row >= n_rows) continue;
        if constexpr (kColumns == 1) {
          if (l.expand.out != nullptr) {
            expand_value(l.expand, 0, row, n_rows, sum[r][c]);
            continue;
          }
        }
        const float added = task.add != nullptr ? task.add[(c0 + c) * task.add_stride + row] : 0.0F;
        task.out[(c0 + c) * task.out_stride + head * task.out_head + row] = sum[r][c] + added;
      }
    }
  }
  if constexpr (kColumns == 1) {
    if (l.counter == nullptr || static_cast<int>(blockIdx.y) != l.finished) return;
    if (!is_last_block(l.counter, (n_rows + rows_of_block - 1) / rows_of_block)) return;
    if (l.norm.out != nullptr) norm_result(task.out, n_rows, l.norm);
    if constexpr (Format::kIsFloat) {
      if (l.collapse.out != nullptr) collapse_token(l.collapse, 0);
      FATHOM_DYNAMIC_SHARED(shared);
      if (l.route.ids != nullptr && threadIdx.x < 32)
        route_token(task.out, l.route.bias, nullptr, l.route.ids, l.route.weights, reinterpret_cast<float*>(shared),
                    l.route.sizes);
    }
  }
}

template <typename Format> void launch_linear_gemv(const LinearLaunch& l) {
  int most_rows = 0;
  for (int i = 0; i < l.n_tasks; ++i) most_rows = std::max(most_rows, l.tasks[i].w.n_rows);
  const int lanes = lanes_for(l.tasks[0].w.n_rows, chunks_of_row(Format::kDType, l.tasks[0].w.k),
                              Format::kIsFloat ? kLinearThreads : 32);
  int threads = lanes;
  if (lanes <= 32) {  // small blocks where there are few, one share of a norm for each thread where there is one
    const int n_warps = (most_rows * lanes + 63) / 64 * l.n_tasks * l.n_heads;
    threads = l.norm.out != nullptr || l.collapse.out != nullptr ? kNormShares
              : n_warps >= 1024                                  ? 128
              : n_warps >= 512                                   ? 64
                                                                 : 32;
  }
  const int rows_of_block = threads / lanes * kRowPair, lanes_log2 = std::countr_zero(static_cast<unsigned>(lanes));
  const dim3 grid((most_rows + rows_of_block - 1) / rows_of_block, l.n_tasks, l.n_heads);
  if (l.n_columns == 1) {
    const size_t shared = l.route.ids != nullptr ? sizeof(float) * static_cast<size_t>(route_floats(l.route.sizes)) : 0;
    launch_overlapped(&linear_gemv_kernel<Format, 1>, grid, threads, shared, l.stream, l, lanes_log2);
  } else {
    launch_overlapped(&linear_gemv_kernel<Format, kColumnsAtOnce>, grid, threads, 0, l.stream, l, lanes_log2);
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

/// Asks for a tile of rows of two matrices (the second may be empty), all of it under way before the first load.
FATHOM_DEVICE void prefetch_tile(const WeightRows& a, const WeightRows& b, int tile) {
  const int first = tile * kTileRows, n = min(kTileRows, a.n_rows - first);
  if (n <= 0) return;
  auto ask = [&](const WeightRows& w, int thread) {
    if (w.data != nullptr) prefetch_run(w.data + first * w.row_bytes, n * w.row_bytes, thread, kFfnThreads);
  };
  ask(a, static_cast<int>(threadIdx.x));
  ask(b, static_cast<int>(threadIdx.x ^ 32));  // on a device one thread asks: of another warp
}

FATHOM_DEVICE WeightRows matrix_of(WeightRows w, int64_t i) {
  w.data += i * w.matrix_bytes;
  return w;
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
  // All loads under way together: there is room for as many groups as blocks count.
  const int n_groups = *l.groups.n_groups, first = l.groups.first[y], end = l.groups.first[y + 1];
  part = {false, l.groups.expert[y], first, end - first, static_cast<int>(blockIdx.x)};
  return y < n_groups;
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

/// Blocks of a kernel for experts of one format and shared experts of another.
template <typename Format, typename Shared> constexpr int mixed_blocks(int n_columns) {
  return std::min(ffn_blocks(Format::kDType, n_columns), ffn_blocks(Shared::kDType, n_columns));
}

/// fn(format of the part's weights).
template <typename Format, typename Shared, typename Fn> FATHOM_DEVICE void with_format(const FfnPart& part, Fn&& fn) {
  if constexpr (std::is_same_v<Format, Shared>) {
    fn(Format());
  } else {
    part.shared ? fn(Shared()) : fn(Format());
  }
}

/// The shared experts' weights may be of another type.
template <typename Format, typename Shared, int kColumns>
FATHOM_KERNEL(kFfnThreads, (mixed_blocks<Format, Shared>(kColumns)))
gate_up_gemv_kernel(FfnLaunch l, int n_slots) {
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
  const WeightRows gate = matrix_of(w.gate, part.expert), up = matrix_of(w.up, part.expert);
  if (!part.shared) prefetch_tile(gate, up, part.tile);

  for (int c0 = 0; c0 < part.n_columns; c0 += kColumns) {
    const int n = min(kColumns, part.n_columns - c0);
    if (tid < n) {
      const int route = column_of(l, part, c0 + tid);
      tokens[tid] = part.shared ? route : route / l.n_used;
      hidden_rows[tid] = route;
    }
    __syncthreads();
    const int in_tile = warp * kRowsOfWarp + lane / kGateLanes, row = min(first_row + in_tile, width - 1);
    const uint8_t* rows[2] = {gate.data + row * gate.row_bytes, up.data + row * up.row_bytes};
    float sum[2][kColumns];
    with_format<Format, Shared>(part, [&](auto format) {
      dot_rows<decltype(format)>(rows, gate.k, lane % kGateLanes, kGateLanes, l.x, ListedRows{tokens}, n, l.grids, sum);
    });
    if (lane % kGateLanes == 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (c < n) values[c * kTileRows + in_tile] = gated(sum[0][c], sum[1][c], l.clamp[part.shared ? 1 : 0]);
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

template <typename Format, typename Shared = Format> void launch_gate_up_gemv(const FfnLaunch& l) {
  const WeightRows& w = l.routed ? l.experts.gate : l.shared_weights.gate;
  const int tiles = (w.n_rows + kTileRows - 1) / kTileRows, slots = routed_slots(l);
  const int shared_tiles = l.shared ? (l.shared_weights.gate.n_rows + kTileRows - 1) / kTileRows : 0;
  const dim3 grid(tiles, slots + (shared_tiles + tiles - 1) / tiles);
  if (l.n_tokens == 1) {
    launch_overlapped(&gate_up_gemv_kernel<Format, Shared, 1>, grid, kFfnThreads, 0, l.stream, l, slots);
  } else {
    launch_overlapped(&gate_up_gemv_kernel<Format, Shared, kFfnColumns>, grid, kFfnThreads, 0, l.stream, l, slots);
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
    if (l.expand.out != nullptr) {
      expand_value(l.expand, t, d, hidden_size, sum);
      continue;
    }
    if (l.add != nullptr) sum += l.add[t * l.add_stride + d];
    l.out[t * l.out_stride + d] = sum;
  }
}

template <typename Format, typename Shared, int kColumns>
FATHOM_KERNEL(kFfnThreads, (mixed_blocks<Format, Shared>(kColumns)))
down_gemv_kernel(FfnLaunch l, int n_slots) {
  FATHOM_SHARED(int, rows_of_x, kColumns);
  let_next_kernel_start();
  if (is_shared(n_slots)) {
    prefetch_tile(l.shared_weights.down, {}, shared_tile(n_slots));
  } else {
    // The kernel before waited for them; were they a step old, other weights would be asked for, and nothing worse.
    const bool is_one = l.expert_ids != nullptr;
    const int expert = min(max(__ldcg((is_one ? l.expert_ids : l.groups.expert) + blockIdx.y), 0), l.n_experts - 1);
    if (is_one || static_cast<int>(blockIdx.y) < __ldcg(l.groups.n_groups))
      prefetch_tile(matrix_of(l.experts.down, expert), {}, static_cast<int>(blockIdx.x));
  }
  wait_for_previous_kernel();
  FfnPart part;
  if (!find_part(l, n_slots, part)) return;
  const FfnWeights& w = part.shared ? l.shared_weights : l.experts;
  const int hidden_size = w.down.n_rows, first_row = part.tile * kTileRows, n_routes = l.n_tokens * l.n_used;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const WeightRows down = matrix_of(w.down, part.expert);
  const int which = part.shared ? 1 : 0;
  const ActRows x{l.hidden_q[which].q, l.hidden_q[which].scales, l.hidden[which], down.k};

  for (int c0 = 0; c0 < part.n_columns; c0 += kColumns) {
    const int n = min(kColumns, part.n_columns - c0);
    if (tid < n) rows_of_x[tid] = column_of(l, part, c0 + tid);
    __syncthreads();
    const int row = first_row + warp * kRowsOfWarp + lane / kDownLanes * kRowPair;
    const uint8_t* rows[kRowPair];
#pragma unroll
    for (int r = 0; r < kRowPair; ++r) rows[r] = down.data + min(row + r, hidden_size - 1) * down.row_bytes;
    float sum[kRowPair][kColumns];
    with_format<Format, Shared>(part, [&](auto format) {
      dot_rows<decltype(format)>(rows, down.k, lane % kDownLanes, kDownLanes, x, ListedRows{rows_of_x}, n, l.grids,
                                 sum);
    });
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

template <typename Format, typename Shared = Format> void launch_down_gemv(const FfnLaunch& l) {
  const WeightRows& w = l.routed ? l.experts.down : l.shared_weights.down;
  const int tiles = (w.n_rows + kTileRows - 1) / kTileRows, slots = routed_slots(l);
  const dim3 grid(tiles, slots + (l.shared ? 1 : 0));
  if (l.n_tokens == 1) {
    launch_overlapped(&down_gemv_kernel<Format, Shared, 1>, grid, kFfnThreads, 0, l.stream, l, slots);
  } else {
    launch_overlapped(&down_gemv_kernel<Format, Shared, kFfnColumns>, grid, kFfnThreads, 0, l.stream, l, slots);
  }
}

}  // namespace fathom::cuda
