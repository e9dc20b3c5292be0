#include "engine/generate.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

double Generation::prompt_tok_s() const {
  return prompt_ms > 0 ? static_cast<double>(prompt_tokens - cached_tokens) * 1000.0 / prompt_ms : 0;
}
double Generation::decode_tok_s() const {
  return decode_ms > 0 && token_ids.size() > 1 ? static_cast<double>(token_ids.size() - 1) * 1000.0 / decode_ms : 0;
}

void Timeline::truncate(int64_t n_tokens) {
  sequence.truncate(n_tokens);
  token_ids.resize(static_cast<size_t>(n_tokens));
}

void validate_request(const Engine& engine, std::span<const int32_t> prompt, const GenerateOptions& options) {
  options.sampling.validate(engine.info().vocab_size);
  validate_stop_strings(options.stop);
  if (options.max_tokens < 0)
    throw Error(ErrorCode::kUsage,
                "max tokens: out of range; expected 0 or more, got " + std::to_string(options.max_tokens));
  if (prompt.empty()) throw Error(ErrorCode::kUsage, "prompt: empty; expected at least one token; try some text");
  const int64_t n_prompt = static_cast<int64_t>(prompt.size());
  // Room for the prompt and the first token's evaluation; a prompt that is only evaluated may fill the context.
  if (n_prompt + (options.max_tokens > 0 ? 1 : 0) > engine.context()) {
    throw Error(ErrorCode::kRuntime, "prompt: longer than the context; expected fewer than " +
                                         std::to_string(engine.context()) + " tokens, got " + std::to_string(n_prompt) +
                                         "; try a shorter prompt or a larger --ctx");
  }
  for (const int32_t id : prompt) {
    if (id < 0 || id >= engine.info().vocab_size) {
      throw Error(ErrorCode::kUsage, "prompt: token id outside the vocabulary; expected 0 to " +
                                         std::to_string(engine.info().vocab_size - 1) + ", got " + std::to_string(id));
    }
  }
}

Generation generate(Engine& engine, Timeline& timeline, std::span<const int32_t> prompt, const GenerateOptions& options,
                    const GenerateCallbacks& callbacks) {
  validate_request(engine, prompt, options);
  Generation out;
  const int64_t n_prompt = out.prompt_tokens = static_cast<int64_t>(prompt.size());
  const auto same = std::mismatch(prompt.begin(), prompt.end(), timeline.token_ids.begin(), timeline.token_ids.end());
  const AttentionPlan plan = engine.attention_plan(n_prompt);
  // The last token is evaluated again even if it is cached: its logits are needed.
  out.cached_tokens = std::min<int64_t>(plan.reusable(timeline.plan, same.first - prompt.begin()), n_prompt - 1);
  timeline.truncate(out.cached_tokens);
  timeline.plan = plan;

  const Clock::time_point start = Clock::now();
  auto interrupted = [&] { return callbacks.interrupted && callbacks.interrupted(); };
  const std::span<const int32_t> rest = prompt.subspan(static_cast<size_t>(out.cached_tokens));
  const bool done = engine.prefill(timeline.sequence, rest, options.max_tokens > 0 ? Outputs::kLast : Outputs::kNone,
                                   callbacks.on_prefill, callbacks.interrupted);
  timeline.token_ids.assign(prompt.begin(), prompt.begin() + timeline.sequence.length());
  out.prompt_ms = ms_since(start);
  if (!done) {
    if (!interrupted())
      throw Error(ErrorCode::kRuntime, "cache: no page left for the prompt; expected " + std::to_string(n_prompt) +
                                           " tokens of room, got " + std::to_string(timeline.sequence.length()) +
                                           "; try fewer sequences at once");
    out.finish = FinishReason::kInterrupted;
    return out;
  }
  if (options.max_tokens == 0) {
    out.finish = FinishReason::kLength;
    return out;
  }

  AnswerWriter answer(engine.tokenizer(), options, prompt);
  auto show = [&] {
    const std::string text = answer.take_text();
    if (text.empty()) return;
    out.text += text;
    if (callbacks.on_text) callbacks.on_text(text);
  };
  Clock::time_point first_token;
  for (;;) {
    const int32_t id = answer.add(engine.logits(0), timeline.sequence.length() < engine.context()).id;
    if (answer.token_ids().size() == 1) {
      first_token = Clock::now();
      out.first_token_ms = ms_since(start);
    }
    if (!answer.ended() && interrupted()) answer.end(FinishReason::kInterrupted);
    show();
    if (answer.ended()) break;
    const StepPart part{&timeline.sequence, {&id, 1}, Outputs::kLast, plan.form(timeline.sequence.length())};
    if (engine.step({&part, 1}) == StepStatus::kNoPages) {
      answer.end(FinishReason::kLength);
      out.context_full = true;
      show();
      break;
    }
    timeline.token_ids.push_back(id);
  }
  out.decode_ms = ms_since(first_token);
  out.token_ids = answer.token_ids();
  out.finish = answer.finish();
  out.stop = answer.stop();
  out.context_full |= answer.context_full();
  return out;
}

}  // namespace fathom
