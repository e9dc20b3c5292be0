// Rows that each stand for several tokens, made by the block of the last of them.
#include "cuda/ops.h"
#include "cuda/paged_rows.cuh"
#include "cuda/store_row.cuh"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;

struct CompressTask {
  const float* kv;          ///< [T, channels]
  const float* gate;        ///< [T, channels]
  const float* positional;  ///< [ratio, channels]
  const float* norm_weight;
  const float* frequencies;
  const int* slots;
  CacheRows pending, rows;
  StepRows step;
  DType type;
  int n, channels, ratio, n_pairs;
  float eps;

  explicit CompressTask(const CompressRowsArgs& a)
      : kv(a.kv.as<const float>()),
        gate(a.gate.as<const float>()),
        positional(a.positional.as<const float>()),
        norm_weight(a.norm_weight.as<const float>()),
        frequencies(a.frequencies.as<const float>()),
        slots(a.step.slots.as<const int>()),
        pending(a.pending),
        rows(a.cache),
        step(a.step),
        type(a.cache.dtype),
        n(static_cast<int>(a.row_dim())),
        channels(static_cast<int>(a.kv.dim(1))),
        ratio(static_cast<int>(a.ratio)),
        n_pairs(static_cast<int>(a.frequencies.dim(0))),
        eps(a.eps) {}
  FATHOM_DEVICE bool overlaps() const { return channels != n; }
};

/// What a token of a window gives: its channels, from the step itself or from what an earlier one left.
struct Source {
  const float* kv;
  const float* gate;
  const float* positional;  ///< null: already in the gate
};

/// Bytes of dynamic shared memory: sources of the window, the row.
size_t shared_bytes(const CompressRowsArgs& a) {
  return static_cast<size_t>(a.ratio) * (a.overlaps() ? 2 : 1) * sizeof(Source) +
         static_cast<size_t>(a.row_dim()) * sizeof(float);
}

/// A block for each token: leaves what the token gives to rows that are not made yet, and makes the row that it ends.
/// Tokens of the step itself are read where the step has them, so that no block waits for another.
FATHOM_KERNEL(kThreads, 1) compress_rows_kernel(CompressTask task) {
  FATHOM_DYNAMIC_SHARED(shared);
  FATHOM_SHARED(float, scratch, kWarps);
  auto* sources = reinterpret_cast<Source*>(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int last = task.step.positions[t], sequence = task.step.sequence_of[t], n = task.n;
  const float* positional = task.positional + static_cast<int64_t>(last % task.ratio) * task.channels;
  auto* left = reinterpret_cast<float*>(row_of(task.pending, task.slots[t]));
  for (int i = thread; i < task.channels; i += kThreads) {
    left[i] = task.kv[t * task.channels + i];
    left[task.channels + i] = task.gate[t * task.channels + i] + positional[i];
  }
  if ((last + 1) % task.ratio != 0) return;

  const int first = last + 1 - task.ratio, begin = task.overlaps() ? max(0, first - task.ratio) : first,
            n_tokens = last + 1 - begin;
  const int* pages = pages_of(task.step, t);
  for (int i = thread; i < n_tokens; i += kThreads) {
    const int p = begin + i;
    const int64_t here = t - (last - p);  // tokens of a sequence are neighbours
    if (here >= 0 && task.step.sequence_of[here] == sequence) {
      sources[i] = {task.kv + here * task.channels, task.gate + here * task.channels,
                    task.positional + static_cast<int64_t>(p % task.ratio) * task.channels};
    } else {
      const int page = pages[p / task.pending.page_tokens];
      const auto* kept = reinterpret_cast<const float*>(
          row_of(task.pending, page * task.pending.page_tokens + p % task.pending.page_tokens));
      sources[i] = {kept, kept + task.channels, nullptr};
    }
  }
  __syncthreads();
  float* row = reinterpret_cast<float*>(sources + (task.overlaps() ? 2 : 1) * task.ratio);
  float squares = 0;
  for (int j = thread; j < n; j += kThreads) {
    auto channel = [&](int i) { return task.overlaps() && begin + i >= first ? n + j : j; };
    auto gate_of = [&](int i) {
      const Source& s = sources[i];
      const float gate = s.gate[channel(i)];
      return s.positional != nullptr ? gate + s.positional[channel(i)] : gate;
    };
    float largest = -INFINITY, total = 0, sum = 0;
#pragma unroll 8
    for (int i = 0; i < n_tokens; ++i) largest = fmaxf(largest, gate_of(i));
#pragma unroll 8
    for (int i = 0; i < n_tokens; ++i) {
      const float weight = expf(gate_of(i) - largest);
      total += weight;
      sum = fmaf(weight, sources[i].kv[channel(i)], sum);
    }
    row[j] = sum / total;
    squares = fmaf(row[j], row[j], squares);
  }
  squares = warp_sum(squares);
  if (lane == 0) scratch[warp] = squares;
  __syncthreads();
  const float scale = 1.0F / sqrtf(warp_sum(lane < kWarps ? scratch[lane] : 0.0F) / static_cast<float>(n) + task.eps);
  for (int j = thread; j < n; j += kThreads) row[j] *= scale * task.norm_weight[j];
  __syncthreads();
  for (int i = thread; i < task.n_pairs; i += kThreads) {  // angles in double, as in rope_table
    const double angle = static_cast<double>(first) * static_cast<double>(task.frequencies[i]);
    const auto cosine = static_cast<float>(cos(angle)), sine = static_cast<float>(sin(angle));
    float* pair = row + n - 2 * task.n_pairs + 2 * i;
    const float x0 = pair[0], x1 = pair[1];
    pair[0] = fmaf(x0, cosine, -(x1 * sine));
    pair[1] = fmaf(x1, cosine, x0 * sine);
  }
  __syncthreads();
  const int page = pages[last / task.pending.page_tokens];
  unsigned char* to = task.rows.data + page * task.rows.page_bytes +
                      static_cast<int64_t>(last % task.pending.page_tokens / task.ratio) * task.rows.row_bytes;
  for (int group = warp; 32 * group < n; group += kWarps) {
    const int i = 32 * group + lane;
    store_element(task.type, to, group, lane, n, i < n ? row[i] : 0.0F);
  }
}

}  // namespace

size_t compress_rows_shared_bytes(const CompressRowsArgs& a) { return shared_bytes(a); }

void compress_rows(const CompressRowsArgs& a, const OpContext& c) {
  launch_overlapped(compress_rows_kernel, static_cast<unsigned>(a.kv.dim(0)), kThreads, shared_bytes(a), c.stream,
                    CompressTask(a));
}

}  // namespace fathom::cuda
