// Where rows that stand for several tokens are, and which a token sees.
#pragma once

#include <cmath>

#include "cpu/sequence_runs.h"
#include "cpu/store_row.h"

namespace fathom::cpu {

/// Row w of a sequence: in the page of its last token.
inline std::byte* compressed_row(const Tensor& cache, const StepTensors& step, int64_t page_tokens, int64_t sequence,
                                 int64_t w, int64_t ratio) {
  const int64_t last = ratio * w + ratio - 1;
  const int64_t page = step.page_table.row_as<int32_t>(sequence)[last / page_tokens];
  return cache.data + page * cache.strides_bytes[0] + last % page_tokens / ratio * cache.strides_bytes[1];
}

/// What token t leaves for rows that are not made yet.
inline void store_pending(const CompressRowsArgs& a, int64_t t) {
  const int64_t channels = a.kv.dim(1);
  float* pending = reinterpret_cast<float*>(cache_row(a.pending, a.step.slots.as<int32_t>()[t]));
  const float* gate = a.gate.row_as<float>(t);
  const float* positional = a.positional.row_as<float>(a.step.positions.as<int32_t>()[t] % a.ratio);
  std::copy_n(a.kv.row_as<float>(t), channels, pending);
  for (int64_t i = 0; i < channels; ++i) pending[channels + i] = gate[i] + positional[i];
}

/// Rotates the last 2 * n_pairs of a row of n as at `position`.
inline void rotate_row(float* row, int64_t n, const float* frequencies, int64_t n_pairs, int64_t position) {
  for (int64_t i = 0; i < n_pairs; ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(frequencies[i]);
    const double cosine = std::cos(angle), sine = std::sin(angle);
    float* pair = row + n - 2 * n_pairs + 2 * i;
    const double x0 = static_cast<double>(pair[0]), x1 = static_cast<double>(pair[1]);
    pair[0] = static_cast<float>(x0 * cosine - x1 * sine);
    pair[1] = static_cast<float>(x0 * sine + x1 * cosine);
  }
}

/// The rows that one token attends to, in the order in which they are summed: its window, oldest first, then compressed
/// rows, rising.
class SeenRows {
 public:
  SeenRows(const CompressedAttentionArgs& a, int64_t t)
      : a_(a), sequence_(a.step.sequence_of.as<int32_t>()[t]), end_(a.step.positions.as<int32_t>()[t] + 1) {
    begin_ = std::max<int64_t>(0, end_ - a.window_tokens);
    if (!a.compressed) return;
    n_compressed_ = end_ / a.ratio;
    if (!a.chosen || n_compressed_ <= a.chosen.dim(1)) return;
    chosen_ = a.chosen.row_as<int32_t>(t);
    n_compressed_ = a.chosen.dim(1);
  }

  int64_t size() const { return end_ - begin_ + n_compressed_; }
  int64_t n_window() const { return end_ - begin_; }
  const std::byte* operator[](int64_t i) const {
    if (i < n_window()) return cached_row(a_.window, a_.step, sequence_, begin_ + i);
    const int64_t w = chosen_ != nullptr ? chosen_[i - n_window()] : i - n_window();
    return compressed_row(a_.compressed, a_.step, a_.window.dim(1), sequence_, w, a_.ratio);
  }

  /// The most rows that any token of the step can see.
  static int64_t most(const CompressedAttentionArgs& a) {
    const int64_t deepest = deepest_context(a.step);
    int64_t n = std::min(deepest, a.window_tokens);
    if (a.compressed) n += a.chosen ? std::min(deepest / a.ratio, a.chosen.dim(1)) : deepest / a.ratio;
    return n;
  }

 private:
  const CompressedAttentionArgs& a_;
  int64_t sequence_, begin_ = 0, end_;
  int64_t n_compressed_ = 0;
  const int32_t* chosen_ = nullptr;  // null: the first n_compressed_ rows
};

}  // namespace fathom::cpu
