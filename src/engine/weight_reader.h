// How the weights of mapped files come into memory: all of them ahead of the evaluation, or, of a model larger than
// memory, what every token needs; its experts then come as they are chosen.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "io/gguf.h"

namespace fathom {

struct ReadingPlan {
  std::vector<std::span<const std::byte>> ranges;  ///< to be read ahead, in this order
  uint64_t size_bytes = 0;                         ///< of all of them
  /// The files are larger than memory: experts leave it and come back while tokens are evaluated.
  bool streams_experts = false;
};

/// `available_bytes`: memory for the files, what they occupy already included; nothing: enough.
ReadingPlan plan_reading(const GgufModel& model, std::optional<uint64_t> available_bytes);

/// Reads a plan's ranges in the background, several pieces at a time: a disk is faster with many requests, and an
/// evaluation that walks through the layers rarely waits for a page behind this reader. Ends when all is read or with
/// this object. The model must outlive it.
class WeightReader {
 public:
  explicit WeightReader(ReadingPlan plan);
  WeightReader(const WeightReader&) = delete;
  WeightReader& operator=(const WeightReader&) = delete;

  /// Waits for the end.
  void finish();

 private:
  void read(std::stop_token stop);

  const ReadingPlan plan_;
  std::vector<uint64_t> starts_;  ///< of ranges, counted through all of them
  std::atomic<uint64_t> next_{0};
  std::vector<std::jthread> threads_;  // last: they use the others
};

}  // namespace fathom
