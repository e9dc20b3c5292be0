#include "engine/answer_writer.h"

#include <utility>

#include "core/error.h"

namespace fathom {

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kInterrupted: return "interrupted";
  }
  return "";
}

AnswerWriter::AnswerWriter(const Tokenizer& tokenizer, GenerateOptions options, std::span<const int32_t> prompt,
                           std::shared_ptr<TokenConstraint> constraint)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      sampler_(options_.sampling),
      decoder_(tokenizer, options_.show_control_tokens ? ControlTokens::kShow : ControlTokens::kHide),
      stops_(options_.stop),
      constraint_(std::move(constraint)) {
  sampler_.prime(prompt);
}

TokenChoice AnswerWriter::add(std::span<const float> logits, bool room) {
  FATHOM_CHECK(!ended(), "the answer is over");
  const TokenChoice choice =
      sampler_.sample(logits, constraint_ ? constraint_->allowed() : std::span<const uint64_t>());
  if (constraint_) constraint_->accept(choice.id);
  sampler_.accept(choice.id);
  token_ids_.push_back(choice.id);
  if (!options_.ignore_eos && tokenizer_.vocab().is_end(choice.id)) {
    finish_with(FinishReason::kStop);
    return choice;
  }
  text_ += stops_.feed(decoder_.push(choice.id));
  if (stops_.stopped()) {
    finish_with(FinishReason::kStop);
  } else if (static_cast<int64_t>(token_ids_.size()) >= options_.max_tokens) {
    finish_with(FinishReason::kLength);
  } else if (!room) {
    context_full_ = true;
    finish_with(FinishReason::kLength);
  }
  return choice;
}

void AnswerWriter::end(FinishReason reason) {
  if (!ended()) finish_with(reason);
}

/// What was held back may complete a stop string yet: an unfinished character becomes U+FFFD.
void AnswerWriter::finish_with(FinishReason reason) {
  finish_ = reason;
  if (stops_.stopped()) return;
  text_ += stops_.feed(decoder_.finish());
  if (stops_.stopped()) {
    finish_ = FinishReason::kStop;
  } else {
    text_ += stops_.flush();
  }
}

std::optional<std::string> AnswerWriter::stop() const {
  if (!stops_.stopped()) return std::nullopt;
  return options_.stop[*stops_.matched()];
}

std::string AnswerWriter::take_text() { return std::exchange(text_, {}); }

}  // namespace fathom
