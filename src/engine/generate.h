// One answer from one sequence: prefill what is new, then token by token until an end.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/answer_writer.h"
#include "engine/attention_plan.h"
#include "engine/engine.h"

namespace fathom {

struct GenerateCallbacks {
  Progress on_prefill;                                 ///< prompt tokens done of those to do
  std::function<void(std::string_view text)> on_text;  ///< pieces of valid UTF-8, stop strings held back
  std::function<bool()> interrupted;                   ///< asked between chunks and tokens
};

struct Generation {
  std::string text;
  std::vector<int32_t> token_ids;  ///< of the answer, an end token included
  FinishReason finish = FinishReason::kStop;
  std::optional<std::string> stop;  ///< the matched stop string
  bool context_full = false;        ///< kLength because the context ended
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  ///< of the prompt, found in a cache
  double queue_ms = 0;        ///< before the first of the following
  double prompt_ms = 0, first_token_ms = 0, decode_ms = 0;

  double prompt_tok_s() const;
  double decode_tok_s() const;  ///< tokens after the first by the time after the first
};

/// A timeline that answers are generated on: the tokens in the cache, so that the next prompt evaluates only what is
/// new.
struct Timeline {
  Sequence sequence;
  std::vector<int32_t> token_ids;  ///< of sequence, as long as it
  AttentionPlan plan{};            ///< that its rows were evaluated by

  explicit Timeline(Engine& engine) : sequence(engine.pool()) {}
  void truncate(int64_t n_tokens);
};

/// Throws Error{kUsage} for options out of range, an empty prompt or ids outside the vocabulary, Error{kRuntime} naming
/// both numbers if the prompt and one token do not fit the context.
void validate_request(const Engine& engine, std::span<const int32_t> prompt, const GenerateOptions& options);

/// Generates after `prompt`, reusing the longest prefix that the timeline already holds; afterwards the timeline holds
/// the prompt and the answer (but its last token, which was never evaluated). The same answer as from an empty
/// timeline, and as from a Scheduler. Throws as validate_request does, and Error{kRuntime} if the model gives NaN.
Generation generate(Engine& engine, Timeline& timeline, std::span<const int32_t> prompt, const GenerateOptions& options,
                    const GenerateCallbacks& callbacks);

}  // namespace fathom
