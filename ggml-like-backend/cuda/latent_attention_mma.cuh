// Latent attention on tensor cores, for DeepSeek's own sizes: latents of 512 values and a shared key of 64, in caches
// of 16 bits and less a value. Products in bf16 with sums in f32.
//
// A block of four warps takes 16 heads of one token and a piece of its rows, 32 rows at a time:
//   scores [16, 32] = q [16, 576] rows^T   a warp has 8 rows, the sum over 576 in four chains
//   softmax                                a warp has 4 heads, a lane each row
//   values [16, 512] += weights [16, 32] rows[:, 0:512]   a warp has 128 columns in 64 registers a thread
// While one tile is used the next is on its way (cp.async) into the other buffer. Rows in shared memory are 584
// elements apart: 1168 bytes are 16 more than a multiple of 128, so the eight rows of an ldmatrix lie in different
// banks.
#pragma once

#include "cuda/paged_attention.cuh"

namespace fathom::cuda {

constexpr int kLatent = 512, kLatentRow = 576;
constexpr int kMmaHeads = 16, kMmaRows = 32, kMmaThreads = 128;

/// Offsets in bytes of a block's shared memory. 95 KiB: what devices of 99 KiB a block can give.
struct MmaShared {
  static constexpr int kStride = kLatentRow + 8, kScoreStride = kMmaRows + 4, kWeightStride = kMmaRows + 8;
  static constexpr int kQuery = 0;                                ///< bf16 [16, kStride]
  static constexpr int kTile = kQuery + kMmaHeads * kStride * 2;  ///< bf16 [2, 32, kStride]
  static constexpr int kTileBytes = kMmaRows * kStride * 2;
  static constexpr int kScores = kTile + 2 * kTileBytes;                   ///< f32 [16, kScoreStride]
  static constexpr int kWeights = kScores + kMmaHeads * kScoreStride * 4;  ///< bf16 [16, kWeightStride]
  static constexpr int kStats = kWeights + kMmaHeads * kWeightStride * 2;  ///< f32 [3, 16]: largest, sum, shrink
  static constexpr int kBytes = kStats + 3 * kMmaHeads * 4;
};
static_assert(MmaShared::kBytes <= 99 * 1024 && MmaShared::kTile % 16 == 0 && MmaShared::kTileBytes % 16 == 0 &&
              MmaShared::kWeights % 16 == 0);

/// Brings rows [first, first + 32) of a piece that ends at `end` to shared memory as bf16, zeros past the end.
template <DType kType>
FATHOM_DEVICE void load_latent_tile(unsigned char* tile, const PagedRows& rows, const int* pages, int first, int end,
                                    int warp, int lane) {
  for (int s = warp; s < kMmaRows; s += kMmaThreads / 32) {
    const bool is_there = first + s < end;
    const Bytes row = cached_row(rows, pages, is_there ? first + s : end - 1);
    unsigned char* to = tile + s * MmaShared::kStride * 2;
    if constexpr (kType == DType::kBF16) {
      for (int i = lane; i < kLatentRow / 8; i += 32) cp_async_16(to + 16 * i, row + 16 * i, is_there);
    } else {
      for (int group = 0; group < kLatentRow / 32; ++group) {
        const float x = is_there ? element<kType>(row, group, lane, Codebooks{}) : 0.0F;
        reinterpret_cast<uint16_t*>(to)[32 * group + lane] = float_to_bf16(x);
      }
    }
  }
}

/// Block (piece, group of 16 heads, token), with kFold (0, group, token) for all pieces.
template <DType kType, bool kFold>
FATHOM_KERNEL(kMmaThreads, 2)
attend_latent_mma_kernel(QueryParts query, PagedRows rows, AttendSizes sizes, Partials out) {
  FATHOM_DYNAMIC_SHARED(shared);
  using S = MmaShared;
  auto* q = reinterpret_cast<uint16_t*>(shared + S::kQuery);
  auto* scores = reinterpret_cast<float*>(shared + S::kScores);
  auto* weights = reinterpret_cast<uint16_t*>(shared + S::kWeights);
  auto* largest = reinterpret_cast<float*>(shared + S::kStats);
  float* total = largest + kMmaHeads;
  float* shrink = total + kMmaHeads;
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int64_t t = blockIdx.z;
  const int first_head = static_cast<int>(blockIdx.y) * kMmaHeads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4, c = lane % 4;
  const int n_visible = rows.positions[t] + 1;
  const int each = rows_each(n_visible, out.most, kMmaRows);
  const int first_row = kFold ? 0 : static_cast<int>(blockIdx.x) * each,
            end = kFold ? n_visible : min(n_visible, first_row + each);
  if (first_row >= end) return;
  const int* pages = rows.page_table + static_cast<int64_t>(rows.sequence_of[t]) * rows.table_width;

  load_latent_tile<kType>(shared + S::kTile, rows, pages, first_row, end, warp, lane);
  cp_async_commit();
  for (int i = thread; i < kMmaHeads * kLatentRow; i += kMmaThreads) {
    const int h = first_head + i / kLatentRow, d = i % kLatentRow;
    float x = 0;
    if (h < sizes.n_heads) {
      x = d < kLatent ? query.first[t * query.first_token + h * query.first_head + d]
                      : query.second[t * query.second_token + h * query.second_head + d - kLatent];
    }
    q[i / kLatentRow * S::kStride + d] = float_to_bf16(x);
  }
  if (thread < kMmaHeads) largest[thread] = -INFINITY, total[thread] = 0;
  float folded[kFold ? 16 : 1][4], folded_largest[2] = {-INFINITY, -INFINITY},
                                   folded_total[2] = {0, 0};  // of heads g, g + 8
  if constexpr (kFold) {
    for (int j = 0; j < 16; ++j) {
      for (int i = 0; i < 4; ++i) folded[j][i] = 0;
    }
  }
  float sums[16][4];  // of tile j of 8 columns: (head g, columns 2c, 2c + 1), then head g + 8
  for (int j = 0; j < 16; ++j) {
    for (int i = 0; i < 4; ++i) sums[j][i] = 0;
  }

  int buffer = 0;
  for (int first = first_row; first < end; first += kMmaRows, buffer ^= 1) {
    const unsigned char* tile = shared + S::kTile + buffer * S::kTileBytes;
    if (first + kMmaRows < end)
      load_latent_tile<kType>(shared + S::kTile + (buffer ^ 1) * S::kTileBytes, rows, pages, first + kMmaRows, end,
                              warp, lane);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();

    float chains[4][4];
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) chains[i][j] = 0;
    }
    for (int k = 0; k < kLatentRow; k += 64) {
      for (int half = 0; half < 2; ++half) {
        uint32_t key[4];  // rows 8 warp .. + 7, elements k + 32 half .. + 31
        ldmatrix_x4(key, tile + ((8 * warp + lane % 8) * S::kStride + k + 32 * half + lane / 8 * 8) * 2);
        for (int part = 0; part < 2; ++part) {
          uint32_t a[4];
          ldmatrix_x4(a, q + lane % 16 * S::kStride + k + 32 * half + 16 * part + lane / 16 * 8);
          const uint32_t b[2] = {key[2 * part], key[2 * part + 1]};
          mma_bf16_16x8x16(chains[2 * half + part], a, b);
        }
      }
    }
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * warp + 2 * c + i % 2;
      const float score = (chains[0][i] + chains[1][i] + (chains[2][i] + chains[3][i])) * sizes.scale;
      scores[(g + i / 2 * 8) * S::kScoreStride + row] = first + row < end ? score : -INFINITY;
    }
    __syncthreads();

    for (int h = 4 * warp; h < 4 * warp + 4; ++h) {
      const float score = scores[h * S::kScoreStride + lane];
      const float most = fmaxf(largest[h], warp_max(score));
      const uint16_t weight = float_to_bf16(expf(score - most));
      weights[h * S::kWeightStride + lane] = weight;
      const float sum = warp_sum(bf16_to_float(weight));  // of what is multiplied with: rounding then cancels
      __syncwarp();
      if (lane == 0) {
        shrink[h] = expf(largest[h] - most);
        total[h] = fmaf(total[h], shrink[h], sum);
        largest[h] = most;
      }
    }
    __syncthreads();

    const float shrink_upper = shrink[g], shrink_lower = shrink[g + 8];
    for (int j = 0; j < 16; ++j) {
      sums[j][0] *= shrink_upper, sums[j][1] *= shrink_upper;
      sums[j][2] *= shrink_lower, sums[j][3] *= shrink_lower;
    }
    for (int k = 0; k < kMmaRows; k += 16) {
      uint32_t a[4];
      ldmatrix_x4(a, weights + lane % 16 * S::kWeightStride + k + lane / 16 * 8);
      for (int j = 0; j < 16; j += 2) {
        uint32_t value[4];  // rows k .. k + 15, columns of tiles j and j + 1
        ldmatrix_x4_transposed(
            value, tile + ((k + lane / 8 % 2 * 8 + lane % 8) * S::kStride + 128 * warp + 8 * j + lane / 16 * 8) * 2);
        const uint32_t left[2] = {value[0], value[1]}, right[2] = {value[2], value[3]};
        mma_bf16_16x8x16(sums[j], a, left);
        mma_bf16_16x8x16(sums[j + 1], a, right);
      }
    }
    if constexpr (kFold) {
      if ((first + kMmaRows) % each == 0 || first + kMmaRows >= end) {  // the piece's last tile
        for (int upper = 0; upper < 2; ++upper) {
          const int h = g + 8 * upper;
          const FoldStep step = fold_step(folded_largest[upper], largest[h]);
          folded_largest[upper] = step.largest;
          folded_total[upper] = fold(folded_total[upper], total[h], step);
          for (int j = 0; j < 16; ++j) {
            for (int i = 2 * upper; i < 2 * upper + 2; ++i) {
              folded[j][i] = fold(folded[j][i], sums[j][i], step);
              sums[j][i] = 0;
            }
          }
        }
        __syncthreads();
        if (thread < kMmaHeads) largest[thread] = -INFINITY, total[thread] = 0;
      }
    }
    __syncthreads();
  }

  for (int upper = 0; upper < 2; ++upper) {
    const int h = first_head + g + 8 * upper;
    if (h >= sizes.n_heads) continue;
    const int64_t at = (t * sizes.n_heads + h) * out.n_pieces + blockIdx.x;
    for (int j = 0; j < 16; ++j) {
      const float2 pair = kFold ? make_float2(folded[kFold ? j : 0][2 * upper], folded[kFold ? j : 0][2 * upper + 1])
                                : make_float2(sums[j][2 * upper], sums[j][2 * upper + 1]);
      *reinterpret_cast<float2*>(out.values + at * kLatent + 128 * warp + 8 * j + 2 * c) = pair;
    }
    if (warp == 0 && c == 0) {
      out.stats[at] = kFold ? make_float2(folded_largest[upper], folded_total[upper])
                            : make_float2(largest[g + 8 * upper], total[g + 8 * upper]);
    }
  }
}

}  // namespace fathom::cuda
