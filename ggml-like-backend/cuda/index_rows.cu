// The lightning indexer: scores of the rows that a token sees, and which of them are chosen, exactly.
#include <algorithm>
#include <utility>

#include "cuda/index_scores.cuh"
#include "cuda/last_block.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / 32;
constexpr int kAtOnce = 4 * 32;                     // scores that a warp reads at a time
constexpr int kStretch = kSelectWarps * kAtOnce;    // and a block
constexpr int64_t kMostStretches = kSelectThreads;  // of a token
/// Scores kept at a time: of 128 tokens at 128K rows. More tokens take more launches.
constexpr int64_t kScoreBytes = int64_t{64} << 20;

/// A row that may be chosen.
struct Candidate {
  float score;
  int row;
};

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

/// Sum of v over the threads before this one, and over all.
struct BlockSum {
  int before, total;
};
FATHOM_DEVICE BlockSum sum_before(int v, int* sums_of_warps) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  int sum = v;
  for (unsigned by = 1; by < 32; by *= 2) {
    const int left = __shfl_up_sync(0xffffffffU, sum, by);
    if (lane >= static_cast<int>(by)) sum += left;
  }
  if (lane == 31) sums_of_warps[warp] = sum;
  __syncthreads();
  BlockSum all{sum - v, 0};
  for (int w = 0; w < kSelectWarps; ++w) {
    if (w < warp) all.before += sums_of_warps[w];
    all.total += sums_of_warps[w];
  }
  __syncthreads();
  return all;
}

/// What digits of the threshold are known: it is the `wanted`-th highest of the scores that agree with them.
struct Threshold {
  uint32_t digits = 0;
  int wanted;
  bool has_first = false;
};

/// Which of n scores are the highest, by a block. The threshold is found digit by digit from the highest down, among
/// those that agree with it so far; then rows are written in order, each warp those of its own stretch. `rows`: whose
/// the scores are, null: 0, 1, ...; both are padded to whole fours.
FATHOM_DEVICE void choose_highest(const float* scores, const int* rows, int n, Threshold threshold, int* chosen) {
  FATHOM_SHARED(int, counts, kBins);
  FATHOM_SHARED(int, sums_of_warps, kSelectWarps);
  FATHOM_SHARED(int2, of_warps, kSelectWarps);
  FATHOM_SHARED(int2, found, 1);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int stretch = (n + kStretch - 1) / kStretch * kAtOnce, begin = min(n, warp * stretch),
            end = min(n, begin + stretch);
  // Calls fn(keys, how many of the four are there) for the lane's four neighbours of each run of kAtOnce.
  auto each = [&](auto&& fn) {
    for (int first = begin; first < end; first += kAtOnce) {
      const int i = first + 4 * lane, n_here = min(max(end - i, 0), 4);
      float4 x = make_float4(0, 0, 0, 0);
      if (n_here > 0) x = *reinterpret_cast<const float4*>(scores + i);
      const uint32_t keys[4] = {ordered(x.x), ordered(x.y), ordered(x.z), ordered(x.w)};
      fn(keys, n_here, i);
    }
  };

  for (const int shift : {kFirstShift, 10, 0}) {
    if (shift == kFirstShift && threshold.has_first) continue;
    const uint32_t mask = shift == 0 ? 1023U : 2047U;
    for (int i = thread; i < kBins; i += kSelectThreads) counts[i] = 0;
    __syncthreads();
    const uint32_t above = shift == kFirstShift ? 0U : ~0U << (shift == 0 ? 10 : kFirstShift);
    each([&](const uint32_t(&keys)[4], int n_here, int) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool counts_too = j < n_here && (keys[j] & above) == threshold.digits;
        count_bins(counts, counts_too ? static_cast<int>(keys[j] >> shift & mask) : -1, lane);
      }
    });
    __syncthreads();
    find_bin(counts, threshold.wanted, sums_of_warps, found);
    threshold.digits |= static_cast<uint32_t>(found[0].x) << shift;
    threshold.wanted = found[0].y;
    __syncthreads();
  }

  int n_higher = 0, n_equal = 0;  // of the warp's stretch
  each([&](const uint32_t(&keys)[4], int n_here, int) {
    for (int j = 0; j < n_here; ++j) {
      n_higher += keys[j] > threshold.digits ? 1 : 0;
      n_equal += keys[j] == threshold.digits ? 1 : 0;
    }
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
      is_higher[j] = __ballot_sync(0xffffffffU, j < n_here && keys[j] > threshold.digits);
      is_equal[j] = __ballot_sync(0xffffffffU, j < n_here && keys[j] == threshold.digits);
      own_higher += __popc(is_higher[j] & before), own_equal += __popc(is_equal[j] & before);
      higher += __popc(is_higher[j]), equal += __popc(is_equal[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool takes = (is_higher[j] >> lane & 1U) != 0, ties = (is_equal[j] >> lane & 1U) != 0;
      if (takes || (ties && own_equal < threshold.wanted))
        chosen[own_higher + min(own_equal, threshold.wanted)] = rows != nullptr ? rows[i + j] : i + j;
      own_higher += takes ? 1 : 0, own_equal += ties ? 1 : 0;
    }
  });
}

/// Where a token sees no more rows than are chosen: all of them.
FATHOM_DEVICE void choose_all(int n, int top_k, int* chosen) {
  for (int i = static_cast<int>(threadIdx.x); i < top_k; i += kSelectThreads) chosen[i] = i < n ? i : -1;
}

struct SelectTask {
  float* scores;  ///< [tokens of the launch, stride]
  int64_t stride;
  StepRows step;
  int tokens_per_row, first_token, top_k;
  int* chosen;  ///< [T, top_k]
  // Of steps of few tokens:
  TokenCounts* counts;    ///< [T]
  Candidate* candidates;  ///< [T, stride], those of a stretch from its own beginning on
  int* rows;              ///< [T, stride] of the candidates that follow one another; their scores lie over `scores`
  int* n_candidates;      ///< [T, kMostStretches]

  FATHOM_DEVICE int n_visible(int64_t t) const { return (step.positions[t] + 1) / tokens_per_row; }
};

/// A block for each token.
FATHOM_KERNEL(kSelectThreads, 1) select_rows_kernel(SelectTask task) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = task.first_token + static_cast<int64_t>(blockIdx.x);
  const int n = task.n_visible(t);
  int* chosen = task.chosen + t * task.top_k;
  if (n <= task.top_k) return choose_all(n, task.top_k, chosen);
  choose_highest(task.scores + blockIdx.x * task.stride, nullptr, n, {.wanted = task.top_k}, chosen);
}

/// Block (stretch of rows, token), where the scores are already counted by their highest digit: each lists its rows
/// from that digit of the threshold up, and the token's last block chooses among those of all.
FATHOM_KERNEL(kSelectThreads, 1) narrow_and_select_kernel(SelectTask task) {
  FATHOM_SHARED(int, bins, kBins);
  FATHOM_SHARED(int, sums_of_warps, kSelectWarps);
  FATHOM_SHARED(int2, found, 1);
  FATHOM_SHARED(int, first_of, kMostStretches);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.y;
  const int n = task.n_visible(t), n_stretches = (n + kStretch - 1) / kStretch, block = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int* chosen = task.chosen + t * task.top_k;
  if (n <= task.top_k) {
    if (block == 0) choose_all(n, task.top_k, chosen);
    return;
  }
  if (block >= n_stretches) return;
  float* scores = task.scores + t * task.stride;
  Candidate* candidates = task.candidates + t * task.stride;
  int* n_candidates = task.n_candidates + t * kMostStretches;
  TokenCounts& counts = task.counts[t];

  const int i = block * kStretch + 4 * thread;
  const float4 x = i < n ? *reinterpret_cast<const float4*>(scores + i) : make_float4(0, 0, 0, 0);
  const float own[4] = {x.x, x.y, x.z, x.w};
  for (int b = thread; b < kBins; b += kSelectThreads) bins[b] = counts.bins[b];
  __syncthreads();
  find_bin(bins, task.top_k, sums_of_warps, found);
  const auto digit = static_cast<uint32_t>(found[0].x);
  int n_own = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) n_own += i + j < n && ordered(own[j]) >> kFirstShift >= digit ? 1 : 0;
  const BlockSum sum = sum_before(n_own, sums_of_warps);
  int to = block * kStretch + sum.before;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (i + j < n && ordered(own[j]) >> kFirstShift >= digit) candidates[to++] = {own[j], i + j};
  }
  if (thread == 0) n_candidates[block] = sum.total;
  if (!is_last_block(&counts.n_done, n_stretches)) return;

  for (int b = thread; b < kBins; b += kSelectThreads) counts.bins[b] = 0;
  const int n_of = thread < n_stretches ? __ldcg(n_candidates + thread) : 0;
  const BlockSum all = sum_before(n_of, sums_of_warps);
  first_of[thread] = all.before;
  __syncthreads();
  int* rows = task.rows + t * task.stride;
  for (int s = warp; s < n_stretches; s += kSelectWarps) {
    const int first = first_of[s], n_here = (s + 1 < n_stretches ? first_of[s + 1] : all.total) - first;
    const auto* from = reinterpret_cast<const float2*>(candidates + s * kStretch);
#pragma unroll 4
    for (int k = lane; k < n_here; k += 32) {
      const float2 candidate = __ldcg(from + k);
      scores[first + k] = candidate.x;
      rows[first + k] = static_cast<int>(__float_as_uint(candidate.y));
    }
  }
  __syncthreads();
  choose_highest(scores, rows, all.total, {digit << kFirstShift, found[0].y, true}, chosen);
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

/// Whether the choice of a token is divided among blocks: where there are few tokens.
bool is_divided(const IndexRowsArgs& a) {
  return a.q.dim(0) <= kIndexCountedTokens && a.q.dim(0) == tokens_at_once(a) &&
         score_stride(a) <= kMostStretches * kStretch;
}

/// What a step's choice has in the workspace.
struct Plan {
  size_t score_bytes, candidate_bytes = 0, row_bytes = 0, count_bytes = 0;

  explicit Plan(const IndexRowsArgs& a) {
    const auto n_tokens = static_cast<size_t>(tokens_at_once(a)), n = n_tokens * static_cast<size_t>(score_stride(a));
    score_bytes = n * sizeof(float);
    if (!is_divided(a)) return;
    candidate_bytes = n * sizeof(Candidate);
    row_bytes = n * sizeof(int);
    count_bytes = n_tokens * kMostStretches * sizeof(int);
  }
  size_t total() const { return score_bytes + candidate_bytes + row_bytes + count_bytes; }
};

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

static_assert(kIndexCountBytes == sizeof(TokenCounts) * kIndexCountedTokens);

}  // namespace

size_t index_rows_shared_bytes(const IndexRowsArgs& a) {
  return kBins * sizeof(int) + (use_mma(a) ? size_t{IndexShared::kBytes} : plain_index_bytes(a.q.dim(1), a.q.dim(2)));
}

size_t index_rows_workspace(const IndexRowsArgs& a) { return Plan(a).total(); }

void index_rows(const IndexRowsArgs& a, const OpContext& c) {
  const int64_t n_tokens = a.q.dim(0), at_once = tokens_at_once(a), stride = score_stride(a);
  const int top_k = static_cast<int>(a.chosen.dim(1));
  const Plan plan(a);
  auto* counts = is_divided(a) ? reinterpret_cast<TokenCounts*>(c.index_counts) : nullptr;
  FATHOM_CHECK(counts != nullptr || !is_divided(a), "counts of the choice");
  std::byte* memory = c.workspace;
  auto take = [&](size_t size_bytes) { return std::exchange(memory, memory + size_bytes); };
  SelectTask select{reinterpret_cast<float*>(take(plan.score_bytes)),
                    stride,
                    StepRows(a.step),
                    a.tokens_per_row,
                    0,
                    top_k,
                    a.chosen.as<int>(),
                    counts,
                    reinterpret_cast<Candidate*>(take(plan.candidate_bytes)),
                    reinterpret_cast<int*>(take(plan.row_bytes)),
                    reinterpret_cast<int*>(take(plan.count_bytes))};
  ScoreTask task{a.q.as<const float>(),
                 a.head_weights.as<const float>(),
                 CachePages(a.cache),
                 select.step,
                 static_cast<int>(a.q.dim(1)),
                 static_cast<int>(a.q.dim(2)),
                 a.tokens_per_row,
                 top_k,
                 0,
                 stride,
                 select.scores,
                 counts};
  // Blocks that a device has room for at once where there are few tokens; many rows for a query's loads where there are
  // many.
  const int64_t tiles = (stride + kIndexTile - 1) / kIndexTile,
                chunks = std::max((tiles + 15) / 16, std::min(tiles, 256 / std::min<int64_t>(at_once, 256)));
  for (int64_t first = 0; first < n_tokens; first += at_once) {
    const auto n = static_cast<unsigned>(std::min(at_once, n_tokens - first));
    task.first_token = select.first_token = static_cast<int>(first);
    // A step whose sequences cannot be that long has nothing to score.
    if (a.step.page_table.dim(1) * a.cache.dim(1) > top_k)
      launch_scores(a, task, dim3(static_cast<unsigned>(chunks), n), c);
    if (is_divided(a)) {
      launch_overlapped(narrow_and_select_kernel, dim3(static_cast<unsigned>((stride + kStretch - 1) / kStretch), n),
                        kSelectThreads, 0, c.stream, select);
    } else {
      launch_overlapped(select_rows_kernel, n, kSelectThreads, 0, c.stream, select);
    }
  }
}

}  // namespace fathom::cuda
