// The integers of one step: tokens, where each stands, which pages it sees. In host memory, or side by side in one
// block of a device's that is sent in one piece.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/backend.h"
#include "deepseek/deepseek.h"

namespace fathom {

/// Everything that the nodes of a step depend on besides its integers: equal shapes, equal nodes.
struct StepShape {
  int64_t n_tokens = 0, n_sequences = 0, n_outputs = 0;
  int64_t table_width = 0;  ///< page ids of a row of the page table
  bool selects = false;     ///< deepseek::Step::selects
  bool keeps_hidden = false;

  auto operator<=>(const StepShape&) const = default;
};

class StepInputs {
 public:
  /// On a device, takes room for `most_tokens` tokens and `most_pages` pages of one sequence, more when a step needs
  /// it.
  StepInputs(Backend& backend, int64_t most_tokens, int64_t most_pages);

  void clear();

  std::vector<int32_t> ids, positions, slots, sequence_of, expanded, output_rows;
  std::vector<int32_t> hidden_rows;  ///< of an MTP pass
  std::vector<int32_t> page_table;   ///< filled by set_page_table
  bool selects = false;              ///< deepseek::Step::selects
  bool keeps_hidden = false;         ///< the step's hidden states are written where the caller says

  /// Gives every sequence a row of the page table, unused entries -1. On a device rows are widened to a power of two,
  /// so that a growing sequence keeps the shape of its steps until it has doubled.
  void set_page_table(std::span<const std::span<const int32_t>> pages);
  StepShape shape() const;

  /// The step over these integers, without caches; on a device they are sent there first. Tensors are good until the
  /// next call; on a device equal shapes get equal addresses as long as generation() stays.
  deepseek::Step send();
  Tensor sent_hidden_rows() const { return sent_hidden_rows_; }  ///< [T] of the last send()
  uint64_t generation() const { return generation_; }

 private:
  Backend& backend_;
  std::shared_ptr<Buffer> device_;  ///< null: the host's vectors are used in place
  std::vector<int32_t> block_;      ///< what is sent
  Tensor sent_hidden_rows_;
  uint64_t generation_ = 0;
};

}  // namespace fathom
