#include "cuda/prepare.h"

#include "cuda/gemv.cuh"
#include "cuda/rank_routes.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kManyThreads = 1024;

/// Blocks of 32 values by a warp each; blockIdx.x counts blocks of kThreads / 32.
FATHOM_DEVICE void quantize_warp(const RowsToQuantize& rows) {
  const int64_t blocks_of_row = rows.out.k / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (i >= rows.n_rows * blocks_of_row) return;
  const int64_t row = i / blocks_of_row, e = i % blocks_of_row * 32;
  const float* x = rows.x + row / rows.n_inner * rows.outer_stride + row % rows.n_inner * rows.inner_stride + e;
  quantize_block(x[threadIdx.x % 32], rows.out.q + row * rows.out.k + e, rows.out.scales + i);
}

FATHOM_KERNEL(kThreads, 1) quantize_kernel(RowsToQuantize rows) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  quantize_warp(rows);
}

FATHOM_KERNEL(kThreads, 1) prepare_kernel(const int32_t* ids, int n_routes, RouteGroups groups, RowsToQuantize rows) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (blockIdx.x + 1 == gridDim.x) {
    rank_routes(ids, n_routes, groups);
  } else {
    quantize_warp(rows);
  }
}

/// Sum of v over the threads before this one, and over all; v of kManyThreads threads.
struct BlockScan {
  int before, total;
};
FATHOM_DEVICE BlockScan scan_block(int v, int* sums_of_warps) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int sum = v;
  for (unsigned by = 1; by < 32; by *= 2) {
    const int left = __shfl_up_sync(0xffffffffu, sum, by);
    if (lane >= static_cast<int>(by)) sum += left;
  }
  if (lane == 31) sums_of_warps[warp] = sum;
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kManyThreads / 32; ++w) {
    if (w < warp) before += sums_of_warps[w];
    total += sums_of_warps[w];
  }
  __syncthreads();
  return {before + sum - v, total};
}

/// A counting sort that keeps the order of equal ids: every warp counts its own stretch of the routes, the counts
/// become places.
FATHOM_KERNEL(kManyThreads, 1)
group_routes_kernel(const int32_t* ids, int n_routes, int n_experts, RouteGroups groups) {
  FATHOM_DYNAMIC_SHARED(memory);  // int [warps][n_experts]
  FATHOM_SHARED(int, sums_of_warps, kManyThreads / 32);
  FATHOM_SHARED(int, start_of, kMaxExperts);
  let_next_kernel_start();
  wait_for_previous_kernel();
  constexpr int kWarps = kManyThreads / 32;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  int* all_counts = reinterpret_cast<int*>(memory);
  int* counts = all_counts + warp * n_experts;
  for (int i = tid; i < kWarps * n_experts; i += kManyThreads) all_counts[i] = 0;
  __syncthreads();
  const int stretch = (n_routes + kManyThreads - 1) / kManyThreads * 32, begin = warp * stretch;
  for (int i = 0; i < stretch; i += 32) {
    const int r = begin + i + lane, id = r < n_routes ? ids[r] : -1;
    const unsigned same = __match_any_sync(0xffffffffu, id);
    if (id >= 0 && __ffs(static_cast<int>(same)) - 1 == lane) counts[id] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  int n = 0;
  if (tid < n_experts) {
    for (int w = 0; w < kWarps; ++w) {
      const int here = all_counts[w * n_experts + tid];
      all_counts[w * n_experts + tid] = n;
      n += here;
    }
  }
  const BlockScan start = scan_block(n, sums_of_warps);
  const BlockScan group = scan_block(n > 0 ? 1 : 0, sums_of_warps);
  const BlockScan tile = scan_block((n + kTileColumns - 1) / kTileColumns, sums_of_warps);
  if (tid < n_experts) start_of[tid] = start.before;
  if (n > 0) {
    groups.expert[group.before] = tid;
    groups.first[group.before] = start.before;
    for (int i = 0; i * kTileColumns < n; ++i) {
      groups.tile_group[tile.before + i] = group.before;
      groups.tile_first[tile.before + i] = start.before + i * kTileColumns;
    }
  }
  if (tid == 0) {
    *groups.n_groups = group.total;
    *groups.n_tiles = tile.total;
    groups.first[group.total] = n_routes;
  }
  __syncthreads();
  for (int i = 0; i < stretch; i += 32) {
    const int r = begin + i + lane, id = r < n_routes ? ids[r] : -1;
    const unsigned same = __match_any_sync(0xffffffffu, id);
    if (id >= 0) groups.order[start_of[id] + counts[id] + __popc(same & ((1u << lane) - 1u))] = r;
    __syncwarp();
    if (id >= 0 && __ffs(static_cast<int>(same)) - 1 == lane) counts[id] += __popc(same);
    __syncwarp();
  }
}

FATHOM_KERNEL(kThreads, 1) sum_outputs_kernel(FfnLaunch l, int hidden_size) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  sum_outputs(l, hidden_size, static_cast<int>(blockIdx.x) * kTileRows, kTileRows);
}

unsigned quantize_blocks(const RowsToQuantize& rows) {
  const int64_t n = rows.n_rows * rows.out.k / 32;
  return static_cast<unsigned>((n + kThreads / 32 - 1) / (kThreads / 32));
}

}  // namespace

void launch_quantize(const RowsToQuantize& rows, Stream stream) {
  if (quantize_blocks(rows) > 0) launch_overlapped(&quantize_kernel, quantize_blocks(rows), kThreads, 0, stream, rows);
}

size_t route_groups_bytes(int64_t n_routes, int64_t n_experts) {
  const int64_t groups = std::min(n_routes, n_experts), tiles = most_tiles(n_routes, n_experts);
  return static_cast<size_t>(2 + groups + groups + 1 + n_routes + 2 * tiles) * sizeof(int32_t) / 256 * 256 + 256;
}

RouteGroups route_groups_at(std::byte* memory, int64_t n_routes, int64_t n_experts) {
  const int64_t groups = std::min(n_routes, n_experts), tiles = most_tiles(n_routes, n_experts);
  auto* p = reinterpret_cast<int32_t*>(memory);
  RouteGroups g;
  g.n_groups = p;
  g.n_tiles = p + 1;
  g.expert = p + 2;
  g.first = g.expert + groups;
  g.order = g.first + groups + 1;
  g.tile_group = g.order + n_routes;
  g.tile_first = g.tile_group + tiles;
  return g;
}

void launch_prepare(const Tensor& ids, int n_experts, const RouteGroups& groups, const RowsToQuantize& rows,
                    Stream stream) {
  const int n_routes = static_cast<int>(ids.shape.n_elements());
  const auto* first = ids.as<int32_t>();
  if (n_routes <= kFewRoutes && ids.dim(0) <= kGemvTokens) {
    launch_overlapped(&prepare_kernel, quantize_blocks(rows) + 1, kThreads, 0, stream, first, n_routes, groups, rows);
    return;
  }
  launch_quantize(rows, stream);
  launch_overlapped(&group_routes_kernel, 1, kManyThreads,
                    sizeof(int) * kManyThreads / 32 * static_cast<size_t>(n_experts), stream, first, n_routes,
                    n_experts, groups);
}

void launch_sum_outputs(const FfnLaunch& l, int hidden_size) {
  launch_overlapped(&sum_outputs_kernel, static_cast<unsigned>((hidden_size + kTileRows - 1) / kTileRows), kThreads, 0,
                    l.stream, l, hidden_size);
}

}  // namespace fathom::cuda
