// V4's attention: all heads over rows that are key and value at once, a window's and compressed ones. Pieces of the
// rows by the kernels of latent attention, then their merge, which ends with the sink.
#include "cuda/attention_mma.cuh"
#include "cuda/ops.h"
#include "cuda/quantize.cuh"
#include "cuda/rotate.cuh"

namespace fathom::cuda {
namespace {

constexpr int kPlainHeads = 8, kPlainValues = 4;

/// A block for each (head, token). Dynamic shared memory: a fold step for each piece, then the head's result.
FATHOM_KERNEL(kAttendThreads, 1)
merge_with_sink_kernel(Partials pieces, const int* positions, const float* sinks, float* out, int n, const float* table,
                       Rotation rotation, QuantizedRows quantized) {
  FATHOM_DYNAMIC_SHARED(shared);
  float2* steps = reinterpret_cast<float2*>(shared);
  float* head = reinterpret_cast<float*>(steps + pieces.n_pieces);  // [n]
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.y, job = t * gridDim.x + blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int n_used = partials_used(pieces, positions[t]);
  const float2* stats = pieces.stats + job * pieces.n_pieces;
  FATHOM_SHARED(float, largest, 1);
  if (warp == 0) {
    const float most = fold_steps(stats, n_used, steps, lane);
    if (lane == 0) largest[0] = most;
  }
  __syncthreads();
  const FoldStep sink = fold_step(largest[0], sinks[blockIdx.x]);  // a piece of weight one without a value
  const float total = folded_sum(steps, n_used, [&](int s) { return stats[s].y; });
  const float divisor = fold(total, 1.0F, sink);
  const float* values = pieces.values + job * pieces.n_pieces * n;
  for (int d = 2 * thread; d < n; d += 2 * kAttendThreads) {
    if (n % 2 == 0) {
      const float2 sum = folded_pair(steps, n_used, values + d, n);
      head[d] = fold(sum.x, 0.0F, sink) / divisor;
      head[d + 1] = fold(sum.y, 0.0F, sink) / divisor;
    } else {
      for (int i = d; i < min(n, d + 2); ++i)
        head[i] = fold(folded_sum(steps, n_used, [&](int s) { return values[static_cast<int64_t>(s) * n + i]; }), 0.0F,
                       sink) /
                  divisor;
    }
  }
  __syncthreads();
  for (int group = warp; 32 * group < n; group += kAttendThreads / 32) {
    const int i = 32 * group + lane;
    float y = i < n ? head[i] : 0.0F;
    if (table != nullptr && i < n) y = rotated(head, i, table + t * 2 * rotation.n_pairs, rotation);
    if (i < n) out[job * n + i] = y;
    const int64_t block = (job * n) / 32 + group;
    if (quantized.q != nullptr) quantize_block(y, quantized.q + 32 * block, quantized.scales + block);
  }
}

struct Plan {
  bool mma;
  int n_groups;
  Partials pieces;
  size_t value_bytes, stat_bytes;

  explicit Plan(const CompressedAttentionArgs& a) {
    const int64_t t = a.q.dim(0), h = a.q.dim(1), n = a.q.dim(2);
    mma = n == kLatent && is_mma_cache(a.window.dtype);
    n_groups = static_cast<int>((h + (mma ? kMmaHeads : kPlainHeads) - 1) / (mma ? kMmaHeads : kPlainHeads));
    const bool is_folded = t > kSplitTokens;
    // By groups of 16 whichever kernel runs: what a model's pieces are does not depend on its cache type.
    const int most = most_pieces(static_cast<int>((h + kMmaHeads - 1) / kMmaHeads));
    const SeenCounts counts = SeenRows::counts_of(a);
    const int64_t most_rows = most_rows_seen(counts, a.step.page_table.dim(1) * a.window.dim(1));
    pieces = {nullptr,   nullptr, is_folded ? 1 : pieces_reserved(most_rows, most), most, mma ? kMmaRows : kAttendRows,
              is_folded, counts};
    auto align = [](int64_t floats) { return (static_cast<size_t>(floats) * sizeof(float) + 255) / 256 * 256; };
    value_bytes = align(t * h * pieces.n_pieces * n);
    stat_bytes = align(t * h * pieces.n_pieces * 2);
  }
};

void launch_compressed(const CompressedAttentionArgs& a, const RotateHeadsArgs* rotate, const QuantizedRows& quantized,
                       const OpContext& c) {
  const Plan plan(a);
  const int n_heads = static_cast<int>(a.q.dim(1)), n = static_cast<int>(a.q.dim(2));
  Partials pieces = plan.pieces;
  pieces.values = reinterpret_cast<float*>(c.workspace);
  pieces.stats = reinterpret_cast<float2*>(c.workspace + plan.value_bytes);
  const QueryParts query{a.q.as<const float>(), nullptr, static_cast<int64_t>(n_heads) * n, n, 0, 0, n, 0};
  const SeenRows rows(a);
  const AttendSizes sizes{n_heads, n, a.scale};
  const dim3 grid(static_cast<unsigned>(pieces.n_pieces), static_cast<unsigned>(plan.n_groups),
                  static_cast<unsigned>(a.q.dim(0)));
  if (plan.mma) {
    with_mma_cache(a.window.dtype, [&](auto type) {
      constexpr DType kType = decltype(type)::value;
      launch_overlapped(
          pieces.is_folded ? attend_mma_kernel<kType, kLatent, true> : attend_mma_kernel<kType, kLatent, false>, grid,
          kMmaThreads, MmaShared<kLatent>::kBytes, c.stream, query, rows, sizes, pieces);
    });
  } else {
    const RowParts row{n, n, 0, 0, 0, 0};
    with_cache_type(a.window.dtype, [&](auto type) {
      constexpr DType kType = decltype(type)::value;
      launch_overlapped(pieces.is_folded ? attend_kernel<kType, kPlainHeads, kPlainValues, true>
                                         : attend_kernel<kType, kPlainHeads, kPlainValues, false>,
                        grid, kAttendThreads, attend_shared_bytes(kPlainHeads, n, n), c.stream, query, rows, row, sizes,
                        pieces);
    });
  }
  launch_overlapped(merge_with_sink_kernel, dim3(static_cast<unsigned>(n_heads), static_cast<unsigned>(a.q.dim(0))),
                    kAttendThreads,
                    sizeof(float2) * static_cast<size_t>(pieces.n_pieces) + sizeof(float) * static_cast<size_t>(n),
                    c.stream, pieces, a.step.positions.as<const int>(), a.sinks.as<const float>(),
                    (rotate != nullptr ? rotate->out : a.out).as<float>(), n,
                    rotate != nullptr ? rotate->table.as<const float>() : nullptr,
                    rotate != nullptr ? rotation_of(*rotate) : Rotation{}, quantized);
}

}  // namespace

size_t compressed_attention_shared_bytes(const CompressedAttentionArgs& a) {
  return Plan(a).mma ? size_t{MmaShared<kLatent>::kBytes}
                     : attend_shared_bytes(kPlainHeads, static_cast<int>(a.q.dim(2)), static_cast<int>(a.q.dim(2)));
}

size_t compressed_attention_workspace(const CompressedAttentionArgs& a) {
  const Plan plan(a);
  return plan.value_bytes + plan.stat_bytes;
}

void compressed_attention(const CompressedAttentionArgs& a, const OpContext& c) {
  launch_compressed(a, nullptr, {}, c);
}

void attend_and_rotate(const CompressedAttentionArgs& a, const RotateHeadsArgs& rotate, const QuantizedRows& quantized,
                       const OpContext& c) {
  launch_compressed(a, &rotate, quantized, c);
}

}  // namespace fathom::cuda
