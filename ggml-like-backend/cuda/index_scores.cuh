// Scores of the lightning indexer: score(t, row) = sum_h weights[t, h] * relu(q[t, h] . row) for the rows that tokens
// see.
//
// The choice of rows compares sums that lie close together, so products are as exact as in f32. On tensor cores, for
// keys of 128 values in 16 bits or 8: the cached rows are operands as they are, and each value of a query is the sum of
// two f16 (22 bits) or, where the cache is bf16, three bf16 (24 bits). A block takes one token, a warp 16 of its heads,
// whose query stays in registers (64 or 96 a thread) while rows pass by, 64 at a time:
//   products [16, 64] = q [16, 128] rows^T; relu, weights, the sum over 16 heads; then the sum over warps.
// Rows in shared memory are 136 elements apart: the eight rows of an ldmatrix lie in different banks.
// Any other sizes and types: in f32, a thread a row and a part of the heads.
//
// In steps of few tokens blocks also count their scores by their highest digit, so that the choice, which comes next,
// need not begin with all of them.
#pragma once

#include "cuda/paged_rows.cuh"
#include "cuda/split_plan.h"

namespace fathom::cuda {

constexpr int kIndexDim = 128, kIndexTile = 64, kIndexHeads = 16, kMostIndexWarps = 8;

// ---- digits of scores ----

constexpr int kBins = 2048;  ///< of 11 bits: 11 + 11 + 10 bits of a score
constexpr int kFirstShift = 21;

/// Order of floats as that of integers; the two zeros are one.
FATHOM_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

/// Adds one to counts[bin] for each lane with a bin (others: -1). Scores share few exponents: one addition for all
/// lanes with the same bin.
FATHOM_DEVICE void count_bins(int* counts, int bin, int lane) {
  const unsigned same = __match_any_sync(0xffffffffU, bin);
  if (bin >= 0 && __ffs(static_cast<int>(same)) - 1 == lane) atomicAdd(&counts[bin], __popc(same));
}

/// What a step of few tokens counts of each of them: all zero before the scores and after the choice.
struct TokenCounts {
  int32_t bins[kBins];  ///< scores by their highest digit
  int32_t n_done;       ///< blocks of the choice
  int32_t unused[31];
};

// ---- scores ----

/// What a step's scores are made of.
struct ScoreTask {
  const float* q;        ///< [T, HI, DI]
  const float* weights;  ///< [T, HI]
  CachePages rows;
  StepRows step;
  int n_heads, dim;
  int tokens_per_row, top_k;
  int first_token;  ///< of the launch; block (one of gridDim.x pieces of the rows, token - first_token)
  int64_t score_stride;
  float* scores;        ///< [tokens of the launch, score_stride]
  TokenCounts* counts;  ///< [tokens of the launch], or null

  FATHOM_DEVICE int n_visible(int64_t t) const { return (step.positions[t] + 1) / tokens_per_row; }
};

/// How a query's value is cut into operands.
template <DType kType> struct IndexOperands {
  static constexpr bool kHalf = kType != DType::kBF16;
  static constexpr int kParts = kHalf ? 2 : 3;

  FATHOM_DEVICE static uint16_t round(float x) { return kHalf ? float_to_half(x) : float_to_bf16(x); }
  FATHOM_DEVICE static float value(uint16_t bits) { return kHalf ? half_to_float(bits) : bf16_to_float(bits); }
  FATHOM_DEVICE static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kHalf) {
      mma_half_16x8x16(c, a, b);
    } else {
      mma_bf16_16x8x16(c, a, b);
    }
  }
};

struct IndexShared {
  static constexpr int kStride = kIndexDim + 8;
  static constexpr int kTileBytes = kIndexTile * kStride * 2;
  static constexpr int kSums = 2 * kTileBytes;  ///< f32 [warps, kIndexTile]
  static constexpr int kBytes = kSums + kMostIndexWarps * kIndexTile * 4;
};
static_assert(IndexShared::kTileBytes % 16 == 0 &&
              IndexShared::kBytes + kBins * static_cast<int>(sizeof(int)) <= 48 * 1024);

/// A block's own counts, in shared memory, on their way into the token's.
class BlockCounts {
 public:
  /// All threads; a barrier has to follow.
  FATHOM_DEVICE BlockCounts(const ScoreTask& task, int* bins)
      : bins_(task.counts != nullptr ? bins : nullptr),
        token_(task.counts != nullptr ? task.counts + blockIdx.y : nullptr) {
    if (bins_ == nullptr) return;
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += static_cast<int>(blockDim.x)) bins_[i] = 0;
  }
  /// By a whole warp.
  FATHOM_DEVICE void add(float score, bool is_there, int lane) {
    if (bins_ != nullptr) count_bins(bins_, is_there ? static_cast<int>(ordered(score) >> kFirstShift) : -1, lane);
  }
  /// All threads.
  FATHOM_DEVICE void finish() {
    if (bins_ == nullptr) return;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += static_cast<int>(blockDim.x)) {
      if (bins_[i] != 0) atomicAdd(&token_->bins[i], bins_[i]);
    }
  }

 private:
  int* bins_;
  TokenCounts* token_;
};

/// Brings rows [first, first + 64) to shared memory as operands, zeros past n_visible.
template <DType kType>
FATHOM_DEVICE void load_index_tile(unsigned char* tile, const ScoreTask& task, const int* pages, int first,
                                   int n_visible) {
  constexpr int kPieces = kIndexDim / 8;  // of 8 values
  for (int i = static_cast<int>(threadIdx.x); i < kIndexTile * kPieces; i += static_cast<int>(blockDim.x)) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool is_there = first + row < n_visible;
    const Bytes from = cached_row(task.rows, pages, min(first + row, n_visible - 1));
    unsigned char* to = tile + (row * IndexShared::kStride + 8 * piece) * 2;
    if constexpr (kType == DType::kF8_E4M3) {
      const uint2 packed = *reinterpret_cast<const uint2*>(from + 8 * piece);
      auto pair = [&](uint32_t word, int j) {
        return is_there ? pack_half(fp8_to_float(static_cast<uint8_t>(word >> (16 * j))),
                                    fp8_to_float(static_cast<uint8_t>(word >> (16 * j + 8))))
                        : 0U;
      };
      *reinterpret_cast<uint4*>(to) =
          make_uint4(pair(packed.x, 0), pair(packed.x, 1), pair(packed.y, 0), pair(packed.y, 1));
    } else {
      cp_async_16(to, from + 16 * piece, is_there);
    }
  }
}

template <DType kType> FATHOM_KERNEL(32 * kMostIndexWarps, 1) index_scores_kernel(ScoreTask task) {
  using Operands = IndexOperands<kType>;
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(int, bins, kBins);
  float* sums = reinterpret_cast<float*>(shared + IndexShared::kSums);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = task.first_token + static_cast<int64_t>(blockIdx.y);
  const int n_visible = task.n_visible(t), each = rows_each(n_visible, static_cast<int>(gridDim.x), kIndexTile),
            begin = static_cast<int>(blockIdx.x) * each;
  if (n_visible <= task.top_k || begin >= n_visible) return;  // nothing to choose
  const int end = min(n_visible, begin + each);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4, c = lane % 4;
  const int* pages = pages_of(task.step, t);
  load_index_tile<kType>(shared, task, pages, begin, end);
  cp_async_commit();
  BlockCounts counts(task, bins);

  // The query of heads g and g + 8 of the warp's, scaled by a power of two so that f16 holds it; the weights make up.
  uint32_t q[kIndexDim / 16][Operands::kParts][4];
  float weight[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int h = kIndexHeads * warp + g + 8 * half;
    const bool is_there = h < task.n_heads;
    const float* from = task.q + (t * task.n_heads + min(h, task.n_heads - 1)) * kIndexDim;
    float2 x[kIndexDim / 8];  // elements 8 i + 2 c and the next
    float most = 0;
#pragma unroll
    for (int i = 0; i < kIndexDim / 8; ++i) x[i] = *reinterpret_cast<const float2*>(from + 8 * i + 2 * c);
#pragma unroll
    for (int i = 0; i < kIndexDim / 8; ++i) {
      if (!is_there) x[i] = make_float2(0, 0);
      most = fmaxf(most, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 2));
    const uint32_t exponent = min(max(__float_as_uint(most) >> 23, 11U), 254U);  // largest values to [2^10, 2^11)
    const float scale = Operands::kHalf ? __uint_as_float((264U - exponent) << 23) : 1.0F;
    weight[half] = is_there ? task.weights[t * task.n_heads + h] : 0.0F;
    if (Operands::kHalf) weight[half] *= __uint_as_float((exponent - 10U) << 23);
#pragma unroll
    for (int i = 0; i < kIndexDim / 8; ++i) {
      float left = x[i].x * scale, right = x[i].y * scale;
#pragma unroll
      for (int part = 0; part < Operands::kParts; ++part) {
        const uint16_t a = Operands::round(left), b = Operands::round(right);
        left -= Operands::value(a), right -= Operands::value(b);
        q[i / 2][part][i % 2 * 2 + half] = a | static_cast<uint32_t>(b) << 16;
      }
    }
  }

  int buffer = 0;
  for (int first = begin; first < end; first += kIndexTile, buffer ^= 1) {
    const unsigned char* tile = shared + buffer * IndexShared::kTileBytes;
    if (first + kIndexTile < end)
      load_index_tile<kType>(shared + (buffer ^ 1) * IndexShared::kTileBytes, task, pages, first + kIndexTile, end);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    // Twice eight rows at a time, two chains of products each: a product waits for the one before it in its chain.
#pragma unroll 1
    for (int rows = 0; rows < kIndexTile; rows += 16) {
      float chains[2][2][4] = {};
#pragma unroll
      for (int k = 0; k < kIndexDim; k += 32) {
        uint32_t key[2][4];  // of eight rows each, elements k .. k + 31
#pragma unroll
        for (int half = 0; half < 2; ++half)
          ldmatrix_x4(key[half], tile + ((rows + 8 * half + lane % 8) * IndexShared::kStride + k + lane / 8 * 8) * 2);
#pragma unroll
        for (int part = 0; part < Operands::kParts; ++part) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t left[2] = {key[half][0], key[half][1]}, right[2] = {key[half][2], key[half][3]};
            Operands::multiply(chains[half][0], q[k / 16][part], left);
            Operands::multiply(chains[half][1], q[k / 16 + 1][part], right);
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          auto product = [&](int j) { return fmaxf(chains[half][0][j] + chains[half][1][j], 0.0F); };
          float sum = fmaf(weight[1], product(i + 2), weight[0] * product(i));
#pragma unroll
          for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffU, sum, offset);
          if (g == 0) sums[warp * kIndexTile + rows + 8 * half + 2 * c + i] = sum;
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < kIndexTile; i += static_cast<int>(blockDim.x)) {  // whole warps
      float sum = 0;
      for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) sum += sums[w * kIndexTile + i];
      const bool is_there = first + i < end;
      if (is_there) task.scores[blockIdx.y * task.score_stride + first + i] = sum;
      counts.add(sum, is_there, lane);
    }
    // The sums are read before the next tile's barrier; they are written after it.
  }
  counts.finish();
}

// ---- any sizes ----

constexpr int kPlainIndexThreads = 128, kPlainIndexRows = 32;

/// Shared bytes: queries, a tile of rows, sums of warps.
constexpr size_t plain_index_bytes(int64_t n_heads, int64_t dim) {
  return sizeof(float) * static_cast<size_t>(n_heads * dim + kPlainIndexRows * (dim + 1) + kPlainIndexThreads);
}

template <DType kType> FATHOM_KERNEL(kPlainIndexThreads, 1) plain_index_scores_kernel(ScoreTask task) {
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(int, bins, kBins);
  float* q = reinterpret_cast<float*>(shared);            // [HI, DI]
  float* tile = q + task.n_heads * task.dim;              // [kPlainIndexRows, DI + 1]
  float* sums = tile + kPlainIndexRows * (task.dim + 1);  // [warps, kPlainIndexRows]
  constexpr int kWarps = kPlainIndexThreads / 32;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = task.first_token + static_cast<int64_t>(blockIdx.y);
  const int n_visible = task.n_visible(t), each = rows_each(n_visible, static_cast<int>(gridDim.x), kPlainIndexRows),
            begin = static_cast<int>(blockIdx.x) * each;
  if (n_visible <= task.top_k || begin >= n_visible) return;
  const int end = min(n_visible, begin + each);
  BlockCounts counts(task, bins);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int* pages = pages_of(task.step, t);
  for (int i = thread; i < task.n_heads * task.dim; i += kPlainIndexThreads)
    q[i] = task.q[t * task.n_heads * task.dim + i];
  const int heads_each = (task.n_heads + kWarps - 1) / kWarps;
  for (int first = begin; first < end; first += kPlainIndexRows) {
    __syncthreads();
    for (int s = warp; s < kPlainIndexRows; s += kWarps) {
      const Bytes row = cached_row(task.rows, pages, min(first + s, end - 1));
      for (int d = lane; d < task.dim; d += 32)
        tile[s * (task.dim + 1) + d] = element<kType>(row, d / 32, lane, Codebooks{});
    }
    __syncthreads();
    const float* row = tile + lane * (task.dim + 1);
    float score = 0;
    for (int h = warp * heads_each; h < min(task.n_heads, (warp + 1) * heads_each); ++h) {
      float dot = 0;
      for (int d = 0; d < task.dim; ++d) dot = fmaf(q[h * task.dim + d], row[d], dot);
      score = fmaf(task.weights[t * task.n_heads + h], fmaxf(dot, 0.0F), score);
    }
    sums[warp * kPlainIndexRows + lane] = score;
    __syncthreads();
    if (warp == 0) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[w * kPlainIndexRows + lane];
      const bool is_there = first + lane < end;
      if (is_there) task.scores[blockIdx.y * task.score_stride + first + lane] = sum;
      counts.add(sum, is_there, lane);
    }
  }
  counts.finish();
}

}  // namespace fathom::cuda
