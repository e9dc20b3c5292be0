// Attention on tensor cores over rows that all heads share, for DeepSeek's own sizes: latents of 512 values and a
// shared key of 64 (V2 to V3.2), or 512 values that are key and value at once (V4), in caches of 16 bits and less a
// value. Products in bf16, of f16 caches in f16, with sums in f32.
//
// A block of four warps takes 16 heads of one token and a piece of its rows, 32 rows at a time:
//   scores [16, 32] = q [16, 576] rows^T   a warp has 8 rows, the sum over 576 in four chains
//   softmax                                a warp has 4 heads, 8 lanes each, a lane 4 rows
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
/// Elements i .. i + 3 of a row of operands.
template <DType kType> FATHOM_DEVICE void store_operands(unsigned char* row, int i, const float4& x) {
  auto pair = [](float low, float high) {
    return static_cast<uint32_t>(to_operand<kType>(low)) | static_cast<uint32_t>(to_operand<kType>(high)) << 16;
  };
  *reinterpret_cast<uint2*>(row + 2 * i) = make_uint2(pair(x.x, x.y), pair(x.z, x.w));
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

/// Each lane finds one row of a tile: a list of rows and the page table are read once for all of them. As a distance
/// from the first page, so that the compiler sees where the loads go.
FATHOM_DEVICE int64_t find_rows(const SeenRows& rows, const TokenRows& token, int first, int end, int lane) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(seen_row(rows, token, min(first + lane, end - 1))) -
                              reinterpret_cast<uintptr_t>(rows.rows.data));
}

/// Brings rows [first, first + 32) of a piece that ends at `end` to shared memory as operands; past the end zeros or
/// the last row, which get no weight. `own` is the lane's of find_rows.
template <DType kType, int kRow>
FATHOM_DEVICE void load_row_tile(unsigned char* tile, const SeenRows& rows, int64_t own, int first, int end, int warp,
                                 int lane) {
#pragma unroll(kType == DType::kBF16 || kType == DType::kF16 ? 8 : 2)
  for (int s = warp; s < kMmaRows; s += kMmaThreads / 32) {
    const Bytes row = rows.rows.data + __shfl_sync(0xffffffffU, own, s);
    unsigned char* to = tile + s * MmaShared<kRow>::kStride * 2;
    if constexpr (kType == DType::kBF16 || kType == DType::kF16) {
#pragma unroll
      for (int i = lane; i < kRow / 8; i += 32) cp_async_16(to + 16 * i, row + 16 * i, first + s < end);
    } else {
#pragma unroll
      for (int i = 4 * lane; i < kRow; i += 128)
        store_operands<kType>(to, i, four_elements<kType>(row, i, Codebooks{}));
    }
  }
}

/// The queries of 16 heads from `first_head` on to shared memory as operands; behind the last head again its own, whose
/// results nobody stores.
template <DType kType, int kRow>
FATHOM_DEVICE void load_queries(unsigned char* to, const QueryParts& query, int64_t t, int first_head, int n_heads) {
  const float* first = query.first + t * query.first_token;
  const float* second = query.second + t * query.second_token;
  const bool in_fours = (reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second)) % 16 == 0 &&
                        (query.first_head | query.second_head) % 4 == 0;
  const int thread = static_cast<int>(threadIdx.x);
  auto load_all = [&](auto&& load) {
#pragma unroll 6
    for (int i = thread; i < kMmaHeads * kRow / 4; i += kMmaThreads) {
      const int in_group = i / (kRow / 4), d = i % (kRow / 4) * 4, h = min(first_head + in_group, n_heads - 1);
      const float4 x =
          load(d < kLatent ? first + h * query.first_head + d : second + h * query.second_head + d - kLatent);
      store_operands<kType>(to + in_group * MmaShared<kRow>::kStride * 2, d, x);
    }
  };
  if (in_fours) {
    load_all([](const float* p) { return *reinterpret_cast<const float4*>(p); });
  } else {
    load_all([](const float* p) { return make_float4(p[0], p[1], p[2], p[3]); });
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

  load_row_tile<kType, kRow>(shared + S::kTile, rows, find_rows(rows, token, first_row, end, lane), first_row, end,
                             warp, lane);
  cp_async_commit();
  int64_t next_rows = find_rows(rows, token, first_row + kMmaRows, end, lane);  // found a tile before they are loaded
  load_queries<kType, kRow>(shared + S::kQuery, query, t, first_head, sizes.n_heads);
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
    if (first + kMmaRows < end) {
      load_row_tile<kType, kRow>(shared + S::kTile + (buffer ^ 1) * S::kTileBytes, rows, next_rows, first + kMmaRows,
                                 end, warp, lane);
      next_rows = find_rows(rows, token, first + 2 * kMmaRows, end, lane);
    }
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

    {
      const int h = 4 * warp + lane / 8, row = lane % 8 * 4;
      const float4 score = *reinterpret_cast<const float4*>(scores + h * S::kScoreStride + row);
      float most = fmaxf(fmaxf(score.x, score.y), fmaxf(score.z, score.w));
#pragma unroll
      for (int offset = 4; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, offset));
      const float before = largest[h];
      most = fmaxf(before, most);
      const uint16_t own[4] = {to_operand<kType>(expf(score.x - most)), to_operand<kType>(expf(score.y - most)),
                               to_operand<kType>(expf(score.z - most)), to_operand<kType>(expf(score.w - most))};
      *reinterpret_cast<uint2*>(weights + h * S::kWeightStride + row) =
          make_uint2(own[0] | static_cast<uint32_t>(own[1]) << 16, own[2] | static_cast<uint32_t>(own[3]) << 16);
      // Of what is multiplied with: rounding then cancels.
      float sum = from_operand<kType>(own[0]) + from_operand<kType>(own[1]) +
                  (from_operand<kType>(own[2]) + from_operand<kType>(own[3]));
#pragma unroll
      for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, offset);
      if (lane % 8 == 0) {
        shrink[h] = expf(before - most);
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
