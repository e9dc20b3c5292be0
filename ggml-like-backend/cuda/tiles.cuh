// Products for many columns: a block computes 64 weight rows times 64 columns, the weights taken apart into shared
// memory once for all columns. Quantized weights as int8 on tensor cores, 256 elements at a time, the sums of every 16
// or 32 elements exact in int32 and then scaled into f32; plain weights in f32 multiplications. The plain path for
// prompts: right first.
#pragma once

#include "cuda/dot.cuh"

namespace fathom::cuda {

constexpr int kTileWeights = 64;  ///< weight rows of a block: 64 of one matrix, or 32 of gate and the same 32 of up
constexpr int kTileThreads = 128;
constexpr int kTileDepth = 256;  ///< elements of k at a time, quantized
constexpr int kTileStride =
    kTileDepth + 16;              ///< bytes between rows in shared memory: eight rows' words fall into different banks
constexpr int kScaleStride = 17;  ///< floats: the same for their scales
constexpr int kFloatDepth = 32;   ///< elements of k at a time, plain
constexpr int kFloatStride = 64 + 4;

enum class TileColumns {
  kDense,   ///< column c is row c * n_heads + head of x and row c of out
  kRoutes,  ///< the routes of an expert; row of x: the route's token
  kHidden,  ///< the routes of an expert; row of x: the route
};

struct TileTask {
  WeightRows w{}, up{};  ///< up empty: plain product
  ActRows x{};
  TileColumns columns = TileColumns::kDense;
  int n_columns = 0, n_heads = 1, n_used = 1;
  int first_matrix = 0, n_matrices = 1;  ///< of groups: experts that w and up hold
  RouteGroups groups{};
  float* out = nullptr;
  int64_t out_stride = 0, out_head = 0;
  const float* add = nullptr;
  int64_t add_stride = 0;
  float clamp = kNoClamp;  ///< of gated products
  const std::byte* grids = nullptr;
};

/// Shared memory of a block, in bytes from its start. Users: the loads of a step; after the last, the results.
struct TileMemory {
  static constexpr int kW = 0;                                            ///< int8 [64][kTileStride]
  static constexpr int kX = kW + kTileWeights * kTileStride;              ///< int8 [64][kTileStride]
  static constexpr int kScale = kX + kTileColumns * kTileStride;          ///< float [64][kScaleStride]
  static constexpr int kMin = kScale + kTileWeights * kScaleStride * 4;   ///< float [64][kScaleStride]
  static constexpr int kXScale = kMin + kTileWeights * kScaleStride * 4;  ///< ActScale [8][64]: by block, then column
  static constexpr int kBytes = kXScale + kTileColumns * 8 * 8;
  static constexpr int kFloatW = 0;                               ///< float [kFloatDepth][kFloatStride]
  static constexpr int kFloatX = kFloatDepth * kFloatStride * 4;  ///< float [kFloatDepth][kFloatStride]
  static constexpr int kResult = 0;                               ///< float [64][65]
};
static_assert(TileMemory::kBytes <= 47 * 1024 && 2 * TileMemory::kFloatX <= TileMemory::kBytes &&
              64 * 65 * 4 <= TileMemory::kBytes);

namespace detail {

/// result[64][65] = weights x columns, quantized. rows: of the 64 weight rows, null behind the last; x_rows: of the
/// columns, -1 behind the last.
template <typename Format>
FATHOM_DEVICE void multiply_tile(unsigned char* memory, const uint8_t* const* rows, const int* x_rows, int k,
                                 const ActRows& x, const std::byte* grids) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
  auto* w8 = reinterpret_cast<int8_t*>(memory + TileMemory::kW);
  auto* x8 = reinterpret_cast<int8_t*>(memory + TileMemory::kX);
  auto* scale = reinterpret_cast<float*>(memory + TileMemory::kScale);
  auto* minimum = reinterpret_cast<float*>(memory + TileMemory::kMin);
  auto* x_scale = reinterpret_cast<ActScale*>(memory + TileMemory::kXScale);
  const int n_blocks = k / Format::kBlock;
  constexpr int kChunks = kTileDepth / 32;
  float sum[kTileColumns / 8][4] = {};

  for (int k0 = 0; k0 < k; k0 += kTileDepth) {
    for (int i = tid; i < kTileWeights * kChunks; i += kTileThreads) {
      const int row = i / kChunks, block = (k0 / 32 + i % kChunks) / Format::kChunks,
                sub = i % Format::kChunks;  // steps begin with a block
      const int e0 = i % kChunks / Format::kChunks * Format::kBlock + Format::first(sub), e1 = e0 + Format::kSecond;
      Chunk c{};
      if (rows[row] != nullptr && block < n_blocks) {
        c = Format::load(rows[row], n_blocks, block, sub, grids);
        if constexpr (Format::kOffset != 0) {
          constexpr uint32_t kOffsets = Format::kOffset * 0x01010101u;
#pragma unroll
          for (int j = 0; j < 8; ++j)
            c.q[j] = static_cast<int>(((static_cast<uint32_t>(c.q[j]) | 0x80808080u) - kOffsets) ^ 0x80808080u);
        }
      }
      *reinterpret_cast<int4*>(w8 + row * kTileStride + e0) = make_int4(c.q[0], c.q[1], c.q[2], c.q[3]);
      *reinterpret_cast<int4*>(w8 + row * kTileStride + e1) = make_int4(c.q[4], c.q[5], c.q[6], c.q[7]);
      scale[row * kScaleStride + e0 / 16] = c.scale_of(0);
      scale[row * kScaleStride + e1 / 16] = c.scale_of(1);
      if constexpr (Format::kHasMin) {
        minimum[row * kScaleStride + e0 / 16] = c.minimum_of(0);
        minimum[row * kScaleStride + e1 / 16] = c.minimum_of(1);
      }
    }
    for (int i = tid; i < kTileColumns * kTileDepth / 16; i += kTileThreads) {
      const int c = i / (kTileDepth / 16), e = i % (kTileDepth / 16) * 16;
      int4 v = make_int4(0, 0, 0, 0);
      if (x_rows[c] >= 0 && k0 + e < k) v = *reinterpret_cast<const int4*>(x.q + x_rows[c] * x.stride + k0 + e);
      *reinterpret_cast<int4*>(x8 + c * kTileStride + e) = v;
    }
    for (int i = tid; i < kTileColumns * kChunks; i += kTileThreads) {
      const int c = i / kChunks, block = i % kChunks;
      ActScale s{};
      if (x_rows[c] >= 0 && k0 + 32 * block < k) s = x.scales[(x_rows[c] * x.stride + k0) / 32 + block];
      x_scale[block * kTileColumns + c] = s;
    }
    __syncthreads();
    const int row = 16 * warp + g;
#pragma unroll 2
    for (int block = 0; block < kChunks; ++block) {
      auto word = [&](const int8_t* m, int r, int at) {
        return *reinterpret_cast<const uint32_t*>(m + r * kTileStride + 32 * block + at);
      };
      const uint32_t a[4] = {word(w8, row, 4 * t), word(w8, row + 8, 4 * t), word(w8, row, 4 * t + 16),
                             word(w8, row + 8, 4 * t + 16)};
      constexpr int kScales = Format::kSub == 32 ? 1 : 2;  // of a row in 32 elements
      float row_scale[2][kScales], row_min[2][kScales];
#pragma unroll
      for (int i = 0; i < 2 * kScales; ++i) {
        const int at = (row + 8 * (i / kScales)) * kScaleStride + 2 * block + i % kScales;
        row_scale[i / kScales][i % kScales] = scale[at];
        if constexpr (Format::kHasMin) row_min[i / kScales][i % kScales] = minimum[at];
      }
#pragma unroll
      for (int n = 0; n < kTileColumns / 8; ++n) {
        const uint32_t b[2] = {word(x8, 8 * n + g, 4 * t), word(x8, 8 * n + g, 4 * t + 16)};
        const ActScale* s = x_scale + block * kTileColumns + 8 * n + 2 * t;
#pragma unroll
        for (int h = 0; h < kScales; ++h) {
          int c[4] = {0, 0, 0, 0};
          if constexpr (kScales == 1) {
            mma_s8_16x8x32(c, a, b);
          } else {
            const uint32_t half_a[2] = {a[2 * h], a[2 * h + 1]};
            mma_s8_16x8x16(c, half_a, b[h]);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float part = row_scale[i / 2][h] * static_cast<float>(c[i]);
            if constexpr (Format::kHasMin) {
              const int x_sum = kScales == 1 ? s[i % 2].sum[0] + s[i % 2].sum[1] : s[i % 2].sum[h];
              part = fmaf(row_min[i / 2][h], static_cast<float>(x_sum), part);
            }
            sum[n][i] = fmaf(s[i % 2].d, part, sum[n][i]);
          }
        }
      }
    }
    __syncthreads();
  }
  auto* result = reinterpret_cast<float*>(memory + TileMemory::kResult);
#pragma unroll
  for (int n = 0; n < kTileColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) result[(16 * warp + g + 8 * (i / 2)) * 65 + 8 * n + 2 * t + i % 2] = sum[n][i];
  }
  __syncthreads();
}

/// The same for plain weights, in f32: a thread has 8 rows and 4 columns.
template <typename Format>
FATHOM_DEVICE void multiply_tile_f32(unsigned char* memory, const uint8_t* const* rows, const int* x_rows, int k,
                                     const ActRows& x) {
  const int tid = static_cast<int>(threadIdx.x), first_row = tid / 16 * 8, first_column = tid % 16 * 4;
  auto* w = reinterpret_cast<float*>(memory + TileMemory::kFloatW);
  auto* xs = reinterpret_cast<float*>(memory + TileMemory::kFloatX);
  constexpr int kPer = Format::kPerChunk;
  float sum[8][4] = {};
  for (int k0 = 0; k0 < k; k0 += kFloatDepth) {
    for (int i = tid; i < kTileWeights * kFloatDepth / kPer; i += kTileThreads) {
      const int row = i % kTileWeights, e = i / kTileWeights * kPer;
      const bool valid = rows[row] != nullptr && k0 + e < k;
      const uint4 packed = valid ? load16(rows[row] + (k0 + e) * (16 / kPer)) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < kPer; ++j)
        w[(e + j) * kFloatStride + row] = valid && k0 + e + j < k ? Format::element(packed, j) : 0.0F;
    }
    for (int i = tid; i < kTileColumns * kFloatDepth; i += kTileThreads) {
      const int c = i / kFloatDepth, e = i % kFloatDepth;
      xs[e * kFloatStride + c] = x_rows[c] >= 0 && k0 + e < k ? x.x[x_rows[c] * x.stride + k0 + e] : 0.0F;
    }
    __syncthreads();
    for (int e = 0; e < kFloatDepth; ++e) {
      const float4 v = *reinterpret_cast<const float4*>(xs + e * kFloatStride + first_column);
      const float columns[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const float weight = w[e * kFloatStride + first_row + r];
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(weight, columns[c], sum[r][c]);
      }
    }
    __syncthreads();
  }
  auto* result = reinterpret_cast<float*>(memory + TileMemory::kResult);
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) result[(first_row + r) * 65 + first_column + c] = sum[r][c];
  }
  __syncthreads();
}

}  // namespace detail

/// blockIdx: x tile of rows, y tile of columns, z head.
template <typename Format> FATHOM_KERNEL(kTileThreads, 3) tiles_kernel(TileTask task) {
  FATHOM_SHARED(unsigned char, memory, TileMemory::kBytes);
  FATHOM_SHARED(const uint8_t*, rows, kTileWeights);
  FATHOM_SHARED(int, x_rows, kTileColumns);
  FATHOM_SHARED(int, out_rows, kTileColumns);
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int tid = static_cast<int>(threadIdx.x), y = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.z);
  int matrix = head, first = y * kTileColumns, end = task.n_columns;
  if (task.columns != TileColumns::kDense) {
    if (y >= *task.groups.n_tiles) return;
    const int group = task.groups.tile_group[y];
    matrix = task.groups.expert[group] - task.first_matrix;
    if (matrix < 0 || matrix >= task.n_matrices) return;
    first = task.groups.tile_first[y];
    end = task.groups.first[group + 1];
  }
  const bool is_gated = task.up.data != nullptr;
  const int rows_here = is_gated ? kTileWeights / 2 : kTileWeights,
            first_row = static_cast<int>(blockIdx.x) * rows_here;
  if (tid < kTileWeights) {
    const WeightRows& w = is_gated && tid >= rows_here ? task.up : task.w;
    const int row = first_row + tid % rows_here;
    rows[tid] = row < w.n_rows ? w.data + matrix * w.matrix_bytes + row * w.row_bytes : nullptr;
  } else {
    const int c = tid - kTileWeights;
    int x_row = -1, out_row = -1;
    if (first + c < end) {
      out_row = task.columns == TileColumns::kDense ? first + c : task.groups.order[first + c];
      x_row = task.columns == TileColumns::kDense    ? out_row * task.n_heads + head
              : task.columns == TileColumns::kRoutes ? out_row / task.n_used
                                                     : out_row;
    }
    x_rows[c] = x_row;
    out_rows[c] = out_row;
  }
  __syncthreads();
  if constexpr (Format::kIsFloat) {
    detail::multiply_tile_f32<Format>(memory, rows, x_rows, task.w.k, task.x);
  } else {
    detail::multiply_tile<Format>(memory, rows, x_rows, task.w.k, task.x, task.grids);
  }
  const auto* result = reinterpret_cast<const float*>(memory + TileMemory::kResult);
  for (int i = tid; i < rows_here * kTileColumns; i += kTileThreads) {
    const int r = i % rows_here, c = i / rows_here, row = first_row + r;
    if (out_rows[c] < 0 || row >= task.w.n_rows) continue;
    float v = result[r * 65 + c];
    if (is_gated) v = gated(v, result[(r + rows_here) * 65 + c], task.clamp);
    if (task.add != nullptr) v += task.add[out_rows[c] * task.add_stride + row];
    task.out[out_rows[c] * task.out_stride + head * task.out_head + row] = v;
  }
}

template <typename Format> void launch_tiles(const TileTask& task, int n_column_tiles, Stream stream) {
  const int rows_here = task.up.data != nullptr ? kTileWeights / 2 : kTileWeights;
  const dim3 grid((task.w.n_rows + rows_here - 1) / rows_here, n_column_tiles, task.n_heads);
  launch_overlapped(&tiles_kernel<Format>, grid, kTileThreads, 0, stream, task);
}

template <typename Format> void launch_linear_tiles(const LinearLaunch& l) {
  for (int i = 0; i < l.n_tasks; ++i) {
    const LinearTask& t = l.tasks[i];
    launch_tiles<Format>({.w = t.w,
                          .x = l.x,
                          .n_columns = l.n_columns,
                          .n_heads = l.n_heads,
                          .out = t.out,
                          .out_stride = t.out_stride,
                          .out_head = t.out_head,
                          .add = t.add,
                          .add_stride = t.add_stride,
                          .grids = l.grids},
                         (l.n_columns + kTileColumns - 1) / kTileColumns, l.stream);
  }
}

template <typename Format> void launch_ffn_tiles(const FfnLaunch& l, bool down) {
  const int which = l.routed ? 0 : 1;
  const FfnWeights& w = l.routed ? l.experts : l.shared_weights;
  const int64_t n_routes = static_cast<int64_t>(l.n_tokens) * l.n_used;
  TileTask task;
  task.n_columns = l.n_tokens;
  task.n_used = l.n_used;
  task.groups = l.groups;
  task.grids = l.grids;
  if (down) {
    task.w = w.down;
    task.x = {l.hidden_q[which].q, l.hidden_q[which].scales, l.hidden[which], w.down.k};
    task.out = l.outputs + (l.routed ? 0 : n_routes * w.down.n_rows);
    task.out_stride = w.down.n_rows;
  } else {
    task.w = w.gate;
    task.up = w.up;
    task.x = l.x;
    task.out = l.hidden[which];
    task.out_stride = w.gate.n_rows;
    task.clamp = l.clamp[which];
  }
  if (l.routed) {
    task.columns = down ? TileColumns::kHidden : TileColumns::kRoutes;
    task.first_matrix = l.first_expert;
    task.n_matrices = l.n_experts_here;
  }
  launch_tiles<Format>(
      task,
      static_cast<int>(l.routed ? most_tiles(n_routes, l.n_experts) : (l.n_tokens + kTileColumns - 1) / kTileColumns),
      l.stream);
}

}  // namespace fathom::cuda
