// A row that stands for several tokens, made by the block of the last of them.
#pragma once

#include "cuda/paged_rows.cuh"
#include "cuda/store_row.cuh"

namespace fathom::cuda {

struct CompressTask {
  const float* kv = nullptr;          ///< [T, channels]
  const float* gate = nullptr;        ///< [T, channels]
  const float* positional = nullptr;  ///< [ratio, channels]
  const float* norm_weight = nullptr;
  const float* frequencies = nullptr;
  const int* slots = nullptr;
  CacheRows pending{}, rows{};
  StepRows step{};
  DType type{};
  int n = 0, channels = 0, ratio = 0, n_pairs = 0;
  float eps = 0;

  CompressTask() = default;
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

/// What a token of a window gives, from the step itself or from what an earlier one left: where its channels are, in
/// floats from the step's first, so that the compiler sees where the loads go.
struct Source {
  int64_t kv, gate;
  int64_t positional;  ///< in CompressTask::positional; -1: already in the gate
};

/// Bytes of shared memory: sources of the window, the row.
inline size_t compress_shared_bytes(const CompressRowsArgs& a) {
  return static_cast<size_t>(a.ratio) * (a.overlaps() ? 2 : 1) * sizeof(Source) +
         static_cast<size_t>(a.row_dim()) * sizeof(float);
}

/// By a block for each token: leaves what the token gives to rows that are not made yet, and makes the row that it
/// ends. Tokens of the step itself are read where the step has them, so that no block waits for another.
FATHOM_DEVICE void compress_row(const CompressTask& task, int64_t t, unsigned char* shared) {
  constexpr int kThreads = kStoreThreads, kWarps = kThreads / 32;
  FATHOM_SHARED(float, scratch, kWarps);
  auto* sources = reinterpret_cast<Source*>(shared);
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
  auto from_kv = [&task](const float* p) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(task.kv)) /
           static_cast<int64_t>(sizeof(float));
  };
  for (int i = thread; i < n_tokens; i += kThreads) {
    const int p = begin + i;
    const int64_t here = t - (last - p);  // tokens of a sequence are neighbours
    if (here >= 0 && task.step.sequence_of[here] == sequence) {
      sources[i] = {here * task.channels, from_kv(task.gate + here * task.channels),
                    static_cast<int64_t>(p % task.ratio) * task.channels};
    } else {
      const int page = pages[p / task.pending.page_tokens];
      const auto* kept = reinterpret_cast<const float*>(
          row_of(task.pending, page * task.pending.page_tokens + p % task.pending.page_tokens));
      sources[i] = {from_kv(kept), from_kv(kept + task.channels), -1};
    }
  }
  __syncthreads();
  float* row = reinterpret_cast<float*>(sources + (task.overlaps() ? 2 : 1) * task.ratio);
  float squares = 0;
  for (int j = thread; j < n; j += kThreads) {
    auto channel = [&](int i) { return task.overlaps() && begin + i >= first ? n + j : j; };
    auto gate_of = [&](int i) {
      const Source& s = sources[i];
      const float gate = task.kv[s.gate + channel(i)];
      return s.positional >= 0 ? gate + task.positional[s.positional + channel(i)] : gate;
    };
    float largest = -INFINITY, total = 0, sum = 0;
#pragma unroll 8
    for (int i = 0; i < n_tokens; ++i) largest = fmaxf(largest, gate_of(i));
#pragma unroll 8
    for (int i = 0; i < n_tokens; ++i) {
      const float weight = expf(gate_of(i) - largest);
      total += weight;
      sum = fmaf(weight, task.kv[sources[i].kv + channel(i)], sum);
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

}  // namespace fathom::cuda
