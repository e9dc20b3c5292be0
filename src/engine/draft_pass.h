// The MTP block's pass: after a step, what follows the token after each of its tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/pages.h"
#include "core/backend.h"
#include "deepseek/deepseek.h"
#include "engine/step_inputs.h"
#include "graph/graph.h"

namespace fathom {

/// A token that is likely to come, and its probability by whoever guessed it.
struct Draft {
  int32_t id;
  float probability;
};

/// Tokens of one sequence in a step that has ended, each with the token after it.
struct DraftPart {
  Sequence* sequence;
  int64_t first_position;             ///< of the first; all lie below sequence->length()
  int64_t first_row;                  ///< of the first among the tokens of that step
  std::span<const int32_t> next_ids;  ///< not empty
  int64_t n_drafts;                   ///< for so many of the last of them; the others only write the block's cache rows
};

/// Memory and graph of such passes. One thread.
class DraftPass {
 public:
  DraftPass(Backend& backend, int64_t most_tokens, int64_t most_pages)
      : backend_(backend), executor_(backend), inputs_(backend, most_tokens, most_pages) {}

  /// `hidden`: the step's hidden states; `caches`: the block's rows. The drafts that the parts want, in order. `hook`:
  /// as Executor::run's, if there is one.
  std::vector<Draft> run(const deepseek::Model& model, const Tensor& hidden, const std::vector<Tensor>& caches,
                         std::span<const DraftPart> parts, const NodeHook& hook = {});

  size_t arena_bytes() const { return executor_.arena_bytes(); }

 private:
  Backend& backend_;
  Executor executor_;
  StepInputs inputs_;
  std::vector<std::span<const int32_t>> pages_;
  std::shared_ptr<Buffer> host_logits_;  ///< of a device
};

}  // namespace fathom
