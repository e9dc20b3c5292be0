// The tokens of a step, sequence by sequence, and where their cached rows are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/node.h"

namespace fathom::cpu {

/// Tokens [first_token, first_token + n_tokens) of a step: all that one sequence brings, in order of position.
struct SequenceRun {
  int64_t first_token = 0;
  int64_t n_tokens = 0;
  int64_t sequence = 0;   ///< row of the page table
  int64_t n_visible = 0;  ///< cached rows that the last token sees, its own included
};

/// The run that begins at token `first`.
inline SequenceRun sequence_run(const StepTensors& step, int64_t first) {
  const int32_t* sequence_of = step.sequence_of.as<int32_t>();
  const int64_t n_tokens = step.sequence_of.dim(0);
  int64_t end = first + 1;
  while (end < n_tokens && sequence_of[end] == sequence_of[first]) ++end;
  return {first, end - first, sequence_of[first], step.positions.as<int32_t>()[end - 1] + 1};
}

/// Calls fn(run) for every sequence of the step, in order.
template <typename Fn> void for_each_run(const StepTensors& step, Fn&& fn) {
  for (int64_t first = 0; first < step.sequence_of.dim(0);) {
    const SequenceRun run = sequence_run(step, first);
    fn(run);
    first += run.n_tokens;
  }
}

/// Cached rows that the deepest token of the step sees.
inline int64_t deepest_context(const StepTensors& step) {
  int64_t rows = 0;
  for (int64_t t = 0; t < step.positions.dim(0); ++t)
    rows = std::max<int64_t>(rows, step.positions.as<int32_t>()[t] + 1);
  return rows;
}

/// Rows that token t sees in a cache whose rows stand for so many tokens each (IndexRowsArgs).
inline int64_t visible_rows(const StepTensors& step, int64_t t, int tokens_per_row) {
  return (step.positions.as<int32_t>()[t] + 1) / tokens_per_row;
}

/// The tokens of a run that see more than top_k rows, and so have to choose: its last ones, maybe none.
inline SequenceRun choosing_tokens(const StepTensors& step, const SequenceRun& run, int64_t top_k, int tokens_per_row) {
  const int32_t* positions = step.positions.as<int32_t>() + run.first_token;
  const int64_t n = std::lower_bound(positions, positions + run.n_tokens, (top_k + 1) * tokens_per_row - 1) - positions;
  return {run.first_token + n, run.n_tokens - n, run.sequence, run.n_visible};
}

/// Row `position` of a sequence, in a cache of cache.dim(1) rows a page.
inline const std::byte* cached_row(const Tensor& cache, const StepTensors& step, int64_t sequence, int64_t position) {
  const int64_t page_tokens = cache.dim(1);
  const int64_t page = step.page_table.row_as<int32_t>(sequence)[position / page_tokens];
  return cache.data + page * cache.strides_bytes[0] + position % page_tokens * cache.strides_bytes[1];
}

/// Expanding costs 2 C (N + V) FLOP for each key and head; then a pair costs 2 (N + R + V) instead of 2 (2 C + R). With
/// DeepSeek's C = 512, N = V = 128, R = 64 the two meet at 262144 / (2176 - 640) = 171 queries for each key. (V2-Lite
/// at depth 4096, AVX-512 BF16: absorbed 80 ms for 160 queries and 97 for 192, expanded 85 and 93.)
constexpr int64_t kExpandFromTokens = 171;

inline bool use_expanded_form(const LatentAttentionArgs& a, const SequenceRun& run) {
  if (a.form != AttentionForm::kAuto) return a.form == AttentionForm::kExpanded;
  return a.step.expanded ? a.step.expanded.as<int32_t>()[run.sequence] != 0 : run.n_tokens >= kExpandFromTokens;
}

}  // namespace fathom::cpu
