// The lightning indexer: scores of the rows that a token sees, and which of them are chosen, exactly.
#include <algorithm>

#include "cuda/index_scores.cuh"
#include "cuda/ops.h"
#include "cuda/split_plan.h"

namespace fathom::cuda {
namespace {

constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / 32;
constexpr int kBins = 2048;      // of 11 bits: 11 + 11 + 10 bits of a score
constexpr int kAtOnce = 4 * 32;  // scores that a warp reads at a time
/// Scores kept at a time: of 128 tokens at 128K rows. More tokens take more launches.
constexpr int64_t kScoreBytes = int64_t{64} << 20;

/// Order of floats as that of integers; the two zeros are one.
FATHOM_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

/// In the block's `found`: the highest bin such that it and those above hold `wanted` of the counts, and how many of
/// that bin are wanted. A thread has two bins.
FATHOM_DEVICE void find_bin(const int* counts, int wanted, int* sums_of_warps, int2* found) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int lower = counts[2 * thread], upper = counts[2 * thread + 1];
  int sum = lower + upper;  // of this lane and those behind it
  for (unsigned by = 1; by < 32; by *= 2) {
    const int other = __shfl_down_sync(0xffffffffU, sum, by);
    if (lane + static_cast<int>(by) < 32) sum += other;
  }
  if (lane == 0) sums_of_warps[warp] = sum;
  __syncthreads();
  int above = sum - lower - upper;
  for (int w = warp + 1; w < kSelectWarps; ++w) above += sums_of_warps[w];
  if (above < wanted && wanted <= above + upper) *found = make_int2(2 * thread + 1, wanted - above);
  above += upper;
  if (above < wanted && wanted <= above + lower) *found = make_int2(2 * thread, wanted - above);
  __syncthreads();
}

/// A block for each token. The top_k-th highest score is found digit by digit from the highest down, among those that
/// agree with it so far; then rows are written in order, each warp those of its own stretch.
FATHOM_KERNEL(kSelectThreads, 1)
select_rows_kernel(const float* all_scores, int64_t score_stride, StepRows step, int tokens_per_row, int first_token,
                   int top_k, int* all_chosen) {
  FATHOM_SHARED(int, counts, kBins);
  FATHOM_SHARED(int, sums_of_warps, kSelectWarps);
  FATHOM_SHARED(int2, of_warps, kSelectWarps);
  FATHOM_SHARED(int2, found, 1);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = first_token + static_cast<int64_t>(blockIdx.x);
  const int n = (step.positions[t] + 1) / tokens_per_row;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int* chosen = all_chosen + t * top_k;
  if (n <= top_k) {
    for (int i = thread; i < top_k; i += kSelectThreads) chosen[i] = i < n ? i : -1;
    return;
  }
  const float* scores = all_scores + blockIdx.x * score_stride;
  const int stretch = (n + kSelectWarps * kAtOnce - 1) / (kSelectWarps * kAtOnce) * kAtOnce,
            begin = min(n, warp * stretch), end = min(n, begin + stretch);
  // Calls fn(keys, how many of the four are there) for the lane's four neighbours of each run of kAtOnce.
  auto each = [&](auto&& fn) {
    for (int first = begin; first < end; first += kAtOnce) {
      const int i = first + 4 * lane, n_here = min(max(end - i, 0), 4);
      float4 x = make_float4(0, 0, 0, 0);
      if (n_here > 0) x = *reinterpret_cast<const float4*>(scores + i);  // rows are padded to whole fours
      const uint32_t keys[4] = {ordered(x.x), ordered(x.y), ordered(x.z), ordered(x.w)};
      fn(keys, n_here, i);
    }
  };

  uint32_t threshold = 0;
  int wanted = top_k;
  for (const int shift : {21, 10, 0}) {
    const uint32_t mask = shift == 0 ? 1023U : 2047U;
    for (int i = thread; i < kBins; i += kSelectThreads) counts[i] = 0;
    __syncthreads();
    const uint32_t above = shift == 21 ? 0U : ~0U << (shift == 0 ? 10 : 21);
    each([&](const uint32_t(&keys)[4], int n_here, int) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool counts_too = j < n_here && (keys[j] & above) == threshold;
        const int bin = counts_too ? static_cast<int>(keys[j] >> shift & mask) : -1;
        // Scores share few exponents: one addition for all lanes with the same bin.
        const unsigned same = __match_any_sync(0xffffffffU, bin);
        if (counts_too && __ffs(static_cast<int>(same)) - 1 == lane) atomicAdd(&counts[bin], __popc(same));
      }
    });
    __syncthreads();
    find_bin(counts, wanted, sums_of_warps, found);
    threshold |= static_cast<uint32_t>(found[0].x) << shift;
    wanted = found[0].y;
    __syncthreads();
  }

  int n_higher = 0, n_equal = 0;  // of the warp's stretch
  each([&](const uint32_t(&keys)[4], int n_here, int) {
    for (int j = 0; j < n_here; ++j) n_higher += keys[j] > threshold ? 1 : 0, n_equal += keys[j] == threshold ? 1 : 0;
  });
  n_higher = __reduce_add_sync(0xffffffffU, n_higher);
  n_equal = __reduce_add_sync(0xffffffffU, n_equal);
  if (lane == 0) of_warps[warp] = make_int2(n_higher, n_equal);
  __syncthreads();
  int higher = 0, equal = 0;  // before the rows that come next
  for (int w = 0; w < warp; ++w) higher += of_warps[w].x, equal += of_warps[w].y;
  const unsigned before = (1U << lane) - 1U;
  each([&](const uint32_t(&keys)[4], int n_here, int i) {
    unsigned is_higher[4], is_equal[4];
    int own_higher = higher, own_equal = equal;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      is_higher[j] = __ballot_sync(0xffffffffU, j < n_here && keys[j] > threshold);
      is_equal[j] = __ballot_sync(0xffffffffU, j < n_here && keys[j] == threshold);
      own_higher += __popc(is_higher[j] & before), own_equal += __popc(is_equal[j] & before);
      higher += __popc(is_higher[j]), equal += __popc(is_equal[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool takes = (is_higher[j] >> lane & 1U) != 0, ties = (is_equal[j] >> lane & 1U) != 0;
      if (takes || (ties && own_equal < wanted)) chosen[own_higher + min(own_equal, wanted)] = i + j;
      own_higher += takes ? 1 : 0, own_equal += ties ? 1 : 0;
    }
  });
}

bool use_mma(const IndexRowsArgs& a) {
  const DType type = a.cache.dtype;
  return a.q.dim(2) == kIndexDim && a.q.dim(1) <= kIndexHeads * kMostIndexWarps &&
         (type == DType::kF16 || type == DType::kBF16 || type == DType::kF8_E4M3);
}

/// Rows of the largest sequence that the step's page table has room for, in whole runs.
int64_t score_stride(const IndexRowsArgs& a) {
  return (a.step.page_table.dim(1) * a.cache.dim(1) + kAtOnce - 1) / kAtOnce * kAtOnce;
}
int64_t tokens_at_once(const IndexRowsArgs& a) {
  const int64_t fit = kScoreBytes / (score_stride(a) * static_cast<int64_t>(sizeof(float)));
  return std::min(a.q.dim(0), std::max<int64_t>(fit, 1));
}

void launch_scores(const IndexRowsArgs& a, const ScoreTask& task, dim3 grid, const OpContext& c) {
  if (use_mma(a)) {
    const auto threads = static_cast<unsigned>((task.n_heads + kIndexHeads - 1) / kIndexHeads * 32);
    auto score = [&](auto type) {
      launch_overlapped(index_scores_kernel<decltype(type)::value>, grid, threads, IndexShared::kBytes, c.stream, task);
    };
    if (a.cache.dtype == DType::kF16) score(TypeTag<DType::kF16>());
    if (a.cache.dtype == DType::kBF16) score(TypeTag<DType::kBF16>());
    if (a.cache.dtype == DType::kF8_E4M3) score(TypeTag<DType::kF8_E4M3>());
    return;
  }
  with_cache_type(a.cache.dtype, [&](auto type) {
    launch_overlapped(plain_index_scores_kernel<decltype(type)::value>, grid, kPlainIndexThreads,
                      plain_index_bytes(task.n_heads, task.dim), c.stream, task);
  });
}

void choose(const IndexRowsArgs& a, const RotateHeadsArgs* rotate, const OpContext& c) {
  const int64_t n_tokens = a.q.dim(0), at_once = tokens_at_once(a), stride = score_stride(a);
  const int top_k = static_cast<int>(a.chosen.dim(1));
  ScoreTask task{
      (rotate != nullptr ? rotate->x : a.q).as<const float>(),
      rotate != nullptr ? rotate->table.as<const float>() : nullptr, a.head_weights.as<const float>(),
      rotate != nullptr ? rotation_of(*rotate) : Rotation{}, CachePages(a.cache), StepRows(a.step),
      static_cast<int>(a.q.dim(1)), static_cast<int>(a.q.dim(2)), a.tokens_per_row, top_k, 0,
      // Blocks for a device and few tokens; many of a query's loads where there are many tokens.
      static_cast<int>(std::clamp<int64_t>(stride * std::min(at_once, kSplitTokens) / 512 / kIndexTile, 1, 16) *
                       kIndexTile),
      stride, reinterpret_cast<float*>(c.workspace)};
  const auto chunks = static_cast<unsigned>((stride + task.rows_each - 1) / task.rows_each);
  for (int64_t first = 0; first < n_tokens; first += at_once) {
    const auto n = static_cast<unsigned>(std::min(at_once, n_tokens - first));
    task.first_token = static_cast<int>(first);
    // A step whose sequences cannot be that long has nothing to score.
    if (a.step.page_table.dim(1) * a.cache.dim(1) > top_k) launch_scores(a, task, dim3(chunks, n), c);
    launch_overlapped(select_rows_kernel, n, kSelectThreads, 0, c.stream, task.scores, stride, task.step,
                      a.tokens_per_row, task.first_token, top_k, a.chosen.as<int>());
  }
}

}  // namespace

size_t index_rows_shared_bytes(const IndexRowsArgs& a) {
  return use_mma(a) ? size_t{IndexShared::kBytes} : plain_index_bytes(a.q.dim(1), a.q.dim(2));
}

size_t index_rows_workspace(const IndexRowsArgs& a) {
  return static_cast<size_t>(tokens_at_once(a) * score_stride(a)) * sizeof(float);
}

void index_rows(const IndexRowsArgs& a, const OpContext& c) { choose(a, nullptr, c); }

void rotate_and_index(const RotateHeadsArgs& rotate, const IndexRowsArgs& a, const OpContext& c) {
  choose(a, &rotate, c);
}

}  // namespace fathom::cuda
