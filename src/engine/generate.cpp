#include "engine/generate.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "sampling/stop_matcher.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kInterrupted: return "interrupted";
  }
  return "";
}

double Generation::prompt_tok_s() const { return prompt_ms > 0 ? static_cast<double>(prompt_tokens - cached_tokens) * 1000.0 / prompt_ms : 0; }
double Generation::decode_tok_s() const { return decode_ms > 0 && token_ids.size() > 1 ? static_cast<double>(token_ids.size() - 1) * 1000.0 / decode_ms : 0; }

void Timeline::truncate(int64_t n_tokens) {
  sequence.truncate(n_tokens);
  token_ids.resize(static_cast<size_t>(n_tokens));
}

Generation generate(Engine& engine, Timeline& timeline, std::span<const int32_t> prompt, const GenerateOptions& options, const GenerateCallbacks& callbacks) {
  options.sampling.validate(engine.info().vocab_size);
  validate_stop_strings(options.stop);
  if (options.max_tokens < 0) throw Error(ErrorCode::kUsage, "max tokens: out of range; expected 0 or more, got " + std::to_string(options.max_tokens));
  if (prompt.empty()) throw Error(ErrorCode::kUsage, "prompt: empty; expected at least one token; try some text");
  const int64_t n_prompt = static_cast<int64_t>(prompt.size());
  // Room for the prompt and the first token's evaluation; a prompt that is only evaluated may fill the context.
  if (n_prompt + (options.max_tokens > 0 ? 1 : 0) > engine.context()) {
    throw Error(ErrorCode::kRuntime, "prompt: longer than the context; expected fewer than " + std::to_string(engine.context()) + " tokens, got " + std::to_string(n_prompt) +
                                         "; try a shorter prompt or a larger --ctx");
  }
  for (const int32_t id : prompt) {
    if (id < 0 || id >= engine.info().vocab_size) {
      throw Error(ErrorCode::kUsage, "prompt: token id outside the vocabulary; expected 0 to " + std::to_string(engine.info().vocab_size - 1) + ", got " + std::to_string(id));
    }
  }

  Generation out;
  out.prompt_tokens = n_prompt;
  const auto same = std::mismatch(prompt.begin(), prompt.end(), timeline.token_ids.begin(), timeline.token_ids.end());
  // The last token is evaluated again even if it is cached: its logits are needed.
  out.cached_tokens = std::min<int64_t>(same.first - prompt.begin(), n_prompt - 1);
  timeline.truncate(out.cached_tokens);

  const Clock::time_point start = Clock::now();
  auto interrupted = [&] { return callbacks.interrupted && callbacks.interrupted(); };
  const std::span<const int32_t> rest = prompt.subspan(static_cast<size_t>(out.cached_tokens));
  const bool done = engine.prefill(timeline.sequence, rest, options.max_tokens > 0 ? Outputs::kLast : Outputs::kNone, callbacks.on_prefill, callbacks.interrupted);
  timeline.token_ids.assign(prompt.begin(), prompt.begin() + timeline.sequence.length());
  out.prompt_ms = ms_since(start);
  if (!done) {
    if (!interrupted()) throw Error(ErrorCode::kRuntime, "cache: no page left for the prompt; expected " + std::to_string(n_prompt) + " tokens of room, got " + std::to_string(timeline.sequence.length()) + "; try fewer sequences at once");
    out.finish = FinishReason::kInterrupted;
    return out;
  }
  if (options.max_tokens == 0) {
    out.finish = FinishReason::kLength;
    return out;
  }

  Sampler sampler(options.sampling);
  sampler.prime(prompt);
  TokenStream decoder(engine.tokenizer(), options.show_control_tokens ? ControlTokens::kShow : ControlTokens::kHide);
  StopMatcher stops(options.stop);
  auto show = [&](const std::string& text) {
    if (text.empty()) return;
    out.text += text;
    if (callbacks.on_text) callbacks.on_text(text);
  };
  Clock::time_point first_token;
  for (;;) {
    const int32_t id = sampler.sample(engine.logits(0)).id;
    sampler.accept(id);
    out.token_ids.push_back(id);
    if (out.token_ids.size() == 1) {
      first_token = Clock::now();
      out.first_token_ms = ms_since(start);
    }
    if (!options.ignore_eos && engine.tokenizer().vocab().is_end(id)) {
      out.finish = FinishReason::kStop;
      break;
    }
    show(stops.feed(decoder.push(id)));
    if (stops.stopped()) {
      out.finish = FinishReason::kStop;
      out.stop = options.stop[*stops.matched()];
      break;
    }
    if (static_cast<int64_t>(out.token_ids.size()) >= options.max_tokens) {
      out.finish = FinishReason::kLength;
      break;
    }
    if (timeline.sequence.length() >= engine.context()) {
      out.finish = FinishReason::kLength;
      out.context_full = true;
      break;
    }
    if (interrupted()) {
      out.finish = FinishReason::kInterrupted;
      break;
    }
    const StepPart part{&timeline.sequence, {&out.token_ids.back(), 1}, Outputs::kLast};
    if (engine.step({&part, 1}) == StepStatus::kNoPages) {
      out.finish = FinishReason::kLength;
      out.context_full = true;
      break;
    }
    timeline.token_ids.push_back(id);
  }
  out.decode_ms = ms_since(first_token);
  if (!stops.stopped()) {
    show(stops.feed(decoder.finish()));
    if (stops.stopped()) {
      out.stop = options.stop[*stops.matched()];
      out.finish = FinishReason::kStop;
    } else {
      show(stops.flush());
    }
  }
  return out;
}

}  // namespace fathom
