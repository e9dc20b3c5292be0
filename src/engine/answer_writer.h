// From logits to an answer, one request's: choice of the token, its text, stop strings, and when it is over.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sampling/sampler.h"
#include "sampling/stop_matcher.h"
#include "text/bpe.h"

namespace fathom {

struct GenerateOptions {
  SamplingParams sampling;
  int64_t max_tokens = 512;       ///< 0: evaluate the prompt only
  std::vector<std::string> stop;  ///< see validate_stop_strings
  bool ignore_eos = false;
  bool show_control_tokens = false;
};

enum class FinishReason { kStop, kLength, kInterrupted };
std::string_view name_of(FinishReason reason);  ///< "stop", "length", "interrupted"

/// Limits what an answer may contain (JSON schema, grammar). Called by the thread that runs the engine, between tokens;
/// what it throws fails its request and no other.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  /// Bit id % 64 of word id / 64 is set for tokens that may come next; empty: all. Valid until accept().
  virtual std::span<const uint64_t> allowed() = 0;
  virtual void accept(int32_t token_id) = 0;
};

/// Options must have been validated. Keeps a reference to the tokenizer. One thread.
class AnswerWriter {
 public:
  AnswerWriter(const Tokenizer& tokenizer, GenerateOptions options, std::span<const int32_t> prompt,
               std::shared_ptr<TokenConstraint> constraint = {});

  /// Chooses the next token; ends the answer where it must. `room`: whether the context has room to evaluate it.
  /// Throws what Sampler::sample and the constraint throw; the answer is then as before.
  TokenChoice add(std::span<const float> logits, bool room);
  /// Ends an unfinished answer from outside.
  void end(FinishReason reason);

  bool ended() const { return finish_.has_value(); }
  FinishReason finish() const { return finish_.value(); }
  bool context_full() const { return context_full_; }
  /// The stop string that ended it.
  std::optional<std::string> stop() const;
  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  /// The text that became certain since the last call: valid UTF-8; all of it once the answer has ended.
  std::string take_text();

 private:
  void finish_with(FinishReason reason);

  const Tokenizer& tokenizer_;
  GenerateOptions options_;
  Sampler sampler_;
  TokenStream decoder_;
  StopMatcher stops_;
  std::shared_ptr<TokenConstraint> constraint_;
  std::vector<int32_t> token_ids_;
  std::string text_;  // not taken yet
  std::optional<FinishReason> finish_;
  bool context_full_ = false;
};

}  // namespace fathom
