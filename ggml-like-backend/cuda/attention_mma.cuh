// Attention on tensor cores over rows that all heads share, for DeepSeek's own sizes: latents of 512 values and a
// shared key of 64 (V2 to V3.2), or 512 values that are key and value at once (V4), in caches of 16 bits and less a
// value. Products in bf16, of f16 caches in f16, with sums in f32.
//
// A block of four warps takes 16 heads of one token and a piece of its rows, 32 rows at a time:
//   scores [16, 32] = q [16, 576] rows^T   a warp has 8 rows, the sum over 576 in four chains
//   softmax                                a warp has 4 heads, a lane each row
//   values [16, 512] += weights [16, 32] rows[:, 0:512]   a warp has 128 columns in 64 registers a thread
// While one tile is used the next is on its way (cp.async) into the other buffer. Rows in shared memory are 584
// (520) elements apart: 1168 bytes are 16 more than a multiple of 128, so the eight rows of an ldmatrix lie in
// different banks.
#pragma once

#include "cuda/paged_attention.cuh"

namespace fathom::cuda {

constexpr int kLatent = 512, kLatentRow = 576;
constexpr int kMmaHeads = 16, kMmaRows = 32, kMmaThreads = 128;

/// Offsets in bytes of a block's shared memory for rows of kRow values. 95 KiB: what devices of 99 KiB a block can
/// give.
template <int kRow> struct MmaShared {
  static constexpr int kStride = kRow + 8, kScoreStride = kMmaRows + 4, kWeightStride = kMmaRows + 8;
  static constexpr int kQuery = 0;                                ///< bf16 [16, kStride]
  static constexpr int kTile = kQuery + kMmaHeads * kStride * 2;  ///< bf16 [2, 32, kStride]
  static constexpr int kTileBytes = kMmaRows * kStride * 2;
  static constexpr int kScores = kTile + 2 * kTileBytes;                   ///< f32 [16, kScoreStride]
  static constexpr int kWeights = kScores + kMmaHeads * kScoreStride * 4;  ///< bf16 [16, kWeightStride]
  static constexpr int kStats = kWeights + kMmaHeads * kWeightStride * 2;  ///< f32 [3, 16]: largest, sum, shrink
  static constexpr int kBytes = kStats + 3 * kMmaHeads * 4;
};
static_assert(MmaShared<kLatentRow>::kBytes <= 99 * 1024 && MmaShared<kLatentRow>::kTile % 16 == 0 &&
              MmaShared<kLatentRow>::kTileBytes % 16 == 0 && MmaShared<kLatentRow>::kWeights % 16 == 0);

/// Operands of the products: f16 where the cache is, else bf16, which holds all the rest.
template <DType kType> FATHOM_DEVICE uint16_t to_operand(float x) {
  // A query beyond f16's range would make scores that no softmax tells apart from its largest value.
  if constexpr (kType == DType::kF16) return float_to_half(fminf(fmaxf(x, -65504.0F), 65504.0F));
  return float_to_bf16(x);
}
template <DType kType> FATHOM_DEVICE float from_operand(uint16_t bits) {
  if constexpr (kType == DType::kF16) return half_to_float(bits);
  return bf16_to_float(bits);
}
template <DType kType>
FATHOM_DEVICE void multiply_operands(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kType == DType::kF16) {
    mma_half_16x8x16(c, a, b);
  } else {
    mma_bf16_16x8x16(c, a, b);
  }
}

/// Whether caches of this type are for tensor cores: those of f32 keep their digits in the f32 kernel.
constexpr bool is_mma_cache(DType type) {
  return type == DType::kBF16 || type == DType::kF16 || type == DType::kQ8_0 || type == DType::kF8_E4M3;
}
/// Calls fn(TypeTag<type>()) for those.
template <typename Fn> void with_mma_cache(DType type, Fn&& fn) {
  if (type == DType::kBF16) fn(TypeTag<DType::kBF16>());
  if (type == DType::kF16) fn(TypeTag<DType::kF16>());
  if (type == DType::kQ8_0) fn(TypeTag<DType::kQ8_0>());
  if (type == DType::kF8_E4M3) fn(TypeTag<DType::kF8_E4M3>());
}

/// Brings rows [first, first + 32) of a piece that ends at `end` to shared memory as operands, zeros past the end.
template <DType kType, int kRow>
FATHOM_DEVICE void load_row_tile(unsigned char* tile, const SeenRows& rows, const TokenRows& token, int first, int end,
                                 int warp, int lane) {
  // Each lane finds one row: a list of rows and the page table are read once for all of them.
  const auto own = reinterpret_cast<uint64_t>(seen_row(rows, token, min(first + lane, end - 1)));
  for (int s = warp; s < kMmaRows; s += kMmaThreads / 32) {
    const bool is_there = first + s < end;
    const auto row = reinterpret_cast<Bytes>(__shfl_sync(0xffffffffU, own, s));
    unsigned char* to = tile + s * MmaShared<kRow>::kStride * 2;
    if constexpr (kType == DType::kBF16 || kType == DType::kF16) {
      for (int i = lane; i < kRow / 8; i += 32) cp_async_16(to + 16 * i, row + 16 * i, is_there);
    } else {
      for (int group = 0; group < kRow / 32; ++group) {
        const float x = is_there ? element<kType>(row, group, lane, Codebooks{}) : 0.0F;
        reinterpret_cast<uint16_t*>(to)[32 * group + lane] = to_operand<kType>(x);
      }
    }
  }
}

/// Block (piece, group of 16 heads, token), with kFold (0, group, token) for all pieces.
template <DType kType, int kRow, bool kFold>
FATHOM_KERNEL(kMmaThreads, 2)
attend_mma_kernel(QueryParts query, SeenRows rows, AttendSizes sizes, Partials out) {
  FATHOM_DYNAMIC_SHARED(shared);
  using S = MmaShared<kRow>;
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
  const TokenRows token(rows, t);
  const int n_visible = token.n;
  const int each = rows_each(n_visible, out.most, kMmaRows);
  const int first_row = kFold ? 0 : static_cast<int>(blockIdx.x) * each,
            end = kFold ? n_visible : min(n_visible, first_row + each);
  if (first_row >= end) return;

  load_row_tile<kType, kRow>(shared + S::kTile, rows, token, first_row, end, warp, lane);
  cp_async_commit();
  for (int i = thread; i < kMmaHeads * kRow; i += kMmaThreads) {
    const int h = first_head + i / kRow, d = i % kRow;
    float x = 0;
    if (h < sizes.n_heads) {
      x = d < kLatent ? query.first[t * query.first_token + h * query.first_head + d]
                      : query.second[t * query.second_token + h * query.second_head + d - kLatent];
    }
    q[i / kRow * S::kStride + d] = to_operand<kType>(x);
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
      load_row_tile<kType, kRow>(shared + S::kTile + (buffer ^ 1) * S::kTileBytes, rows, token, first + kMmaRows, end,
                                 warp, lane);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();

    float chains[4][4];
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) chains[i][j] = 0;
    }
    for (int k = 0; k < kRow; k += 64) {
      for (int half = 0; half < 2; ++half) {
        uint32_t key[4];  // rows 8 warp .. + 7, elements k + 32 half .. + 31
        ldmatrix_x4(key, tile + ((8 * warp + lane % 8) * S::kStride + k + 32 * half + lane / 8 * 8) * 2);
        for (int part = 0; part < 2; ++part) {
          uint32_t a[4];
          ldmatrix_x4(a, q + lane % 16 * S::kStride + k + 32 * half + 16 * part + lane / 16 * 8);
          const uint32_t b[2] = {key[2 * part], key[2 * part + 1]};
          multiply_operands<kType>(chains[2 * half + part], a, b);
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
      const uint16_t weight = to_operand<kType>(expf(score - most));
      weights[h * S::kWeightStride + lane] = weight;
      const float sum = warp_sum(from_operand<kType>(weight));  // of what is multiplied with: rounding then cancels
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
        multiply_operands<kType>(sums[j], a, left);
        multiply_operands<kType>(sums[j + 1], a, right);
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
