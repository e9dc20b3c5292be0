#include "engine/request.h"

namespace fathom {
namespace {

void require_within(const char* what, int value, int least, int most) {
  if (value >= least && value <= most) return;
  throw Error(ErrorCode::kUsage, std::string(what) + ": out of range; expected " + std::to_string(least) + " to " +
                                     std::to_string(most) + ", got " + std::to_string(value));
}

}  // namespace

void validate_request(const Engine& engine, const Request& request) {
  const GenerateOptions& options = request.options;
  options.sampling.validate(engine.info().vocab_size);
  validate_stop_strings(options.stop);
  if (options.max_tokens < 0)
    throw Error(ErrorCode::kUsage,
                "max tokens: out of range; expected 0 or more, got " + std::to_string(options.max_tokens));
  if (request.prompt.empty())
    throw Error(ErrorCode::kUsage, "prompt: empty; expected at least one token; try some text");
  const int64_t n_prompt = static_cast<int64_t>(request.prompt.size());
  // Room for the prompt and the first token's evaluation; a prompt that is only evaluated may fill the context.
  if (n_prompt + (options.max_tokens > 0 ? 1 : 0) > engine.context()) {
    throw Error(ErrorCode::kRuntime, "prompt: longer than the context; expected fewer than " +
                                         std::to_string(engine.context()) + " tokens, got " + std::to_string(n_prompt) +
                                         "; try a shorter prompt or a larger --ctx");
  }
  for (const int32_t id : request.prompt) {
    if (id < 0 || id >= engine.info().vocab_size) {
      throw Error(ErrorCode::kUsage, "prompt: token id outside the vocabulary; expected 0 to " +
                                         std::to_string(engine.info().vocab_size - 1) + ", got " + std::to_string(id));
    }
  }
  require_within("top_logprobs", request.top_logprobs, 0, kMaxTopLogprobs);
  require_within("priority", request.priority, -kMaxPriority, kMaxPriority);
}

double Generation::prompt_tok_s() const {
  return prompt_ms > 0 ? static_cast<double>(prompt_tokens - cached_tokens) * 1000.0 / prompt_ms : 0;
}
double Generation::decode_tok_s() const {
  return decode_ms > 0 && token_ids.size() > 1 ? static_cast<double>(token_ids.size() - 1) * 1000.0 / decode_ms : 0;
}

}  // namespace fathom
