// How fast this machine runs a model, and how near that is to what it could at best. The numbers of `fathom bench`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace fathom {

struct BenchOptions {
  std::vector<int64_t> prefill_tokens = {512};  ///< 0: no such row
  std::vector<int64_t> decode_tokens = {64};    ///< 0: no such row
  std::vector<int64_t> depths = {0};            ///< tokens already in each sequence's cache
  std::vector<int64_t> batches = {1};           ///< sequences
  int repetitions = 5;

  /// The longest context a row needs, for EngineOptions::context of one sequence times the batch. Throws Error{kUsage}.
  int64_t pool_tokens() const;
};

/// What the processor or device that runs the model can do at best.
struct SpeedBounds {
  double read_gb_s = 0;     ///< of its memory: bounds decode
  double matrix_gop_s = 0;  ///< multiplications and additions: bounds prefill
};

struct BenchRow {
  std::string test;  ///< "prefill" or "decode"
  int64_t tokens = 0, depth = 0, batch = 0;
  double tok_s_median = 0, tok_s_min = 0, tok_s_max = 0;  ///< of all sequences together
  double gb_s = 0;   ///< weights and cache that a step cannot avoid reading, by the median time
  double gop_s = 0;  ///< operations likewise
  /// Decode: gb_s of the measured read bandwidth. Prefill: gop_s of the measured matrix peak.
  double percent_of_bound = 0;
  double seconds_median = 0;
};

/// One row for each combination, each after a warm-up; `on_row` is called as rows come, `note` tells what goes on.
/// Tokens are random ids: routing is near uniform. Throws Error{kNoMemory} if the pool is too small.
std::vector<BenchRow> run_benchmark(Engine& engine, const BenchOptions& options, const SpeedBounds& bounds,
                                    const std::function<void(const BenchRow&)>& on_row,
                                    const std::function<void(const std::string&)>& note);

}  // namespace fathom
