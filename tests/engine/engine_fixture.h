// Small models, prompts and requests for tests of whole answers.
#pragma once

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "engine/scheduler.h"

namespace fathom::testing {

/// Latent attention, experts, 512 tokens of vocabulary: the shape of V2-Lite, scaled down.
constexpr const char* kLatentModel = "v2lite/v2lite-q4_k_m-mla-00001-of-00003.gguf";

/// An indexer that chooses 32 tokens.
constexpr const char* kIndexerModel = "v32/v32-bf16.gguf";

/// Expands from position 128 on in blocks of 64, so that short prompts have all three stretches of an AttentionPlan.
inline EngineOptions small_engine_options(const std::string& file = kLatentModel) {
  EngineOptions o;
  o.model_path = std::string(FATHOM_FIXTURES "/models/") + file;
  o.n_threads = 1;
  o.context = 512;
  o.chunk_tokens = 96;
  o.expand = {128, 64};
  return o;
}

inline std::vector<int32_t> random_prompt(size_t n, uint32_t seed, int64_t vocab = 256) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(n);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  return ids;
}

inline Request request_for(std::vector<int32_t> prompt, int64_t max_tokens = 8) {
  Request r;
  r.prompt = std::move(prompt);
  r.options.max_tokens = max_tokens;
  r.options.ignore_eos = true;
  r.options.sampling.temperature = 0;
  r.logprobs = true;
  return r;
}

/// All that came of a request. Log-probabilities are compared to the last bit: they hang on every logit.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::string text;
  std::vector<StartedEvent> starts;
  std::optional<Generation> generation;
  std::optional<Error> error;

  bool same_tokens(const Answer& other) const {
    return ids == other.ids && logprobs == other.logprobs && text == other.text;
  }
};

inline Answer read_all(RequestHandle& handle) {
  Answer a;
  while (!handle.done()) {
    const std::optional<Event> event = handle.next(std::chrono::seconds(120));
    REQUIRE(event.has_value());
    if (const auto* e = std::get_if<StartedEvent>(&*event)) a.starts.push_back(*e);
    if (const auto* e = std::get_if<TokenEvent>(&*event)) {
      a.text += e->text;
      if (e->id) a.ids.push_back(*e->id), a.logprobs.push_back(e->logprob);
    }
    if (const auto* e = std::get_if<FinishedEvent>(&*event)) a.generation = e->generation;
    if (const auto* e = std::get_if<FailedEvent>(&*event)) a.error = e->error;
  }
  if (a.generation) {
    CHECK(a.generation->token_ids == a.ids);
    CHECK(a.generation->text == a.text);
  }
  return a;
}

inline RequestHandle submit(Scheduler& scheduler, Request request) {
  std::variant<RequestHandle, Refusal> result = scheduler.submit(std::move(request));
  REQUIRE(std::holds_alternative<RequestHandle>(result));
  return std::move(std::get<RequestHandle>(result));
}

inline Answer answer(Scheduler& scheduler, Request request) {
  RequestHandle handle = submit(scheduler, std::move(request));
  return read_all(handle);
}

/// The answer of a fresh scheduler that has seen and sees nothing else.
inline Answer answer_alone(Engine& engine, Request request) {
  Scheduler scheduler(engine, {});
  request.use_cache = false;
  return answer(scheduler, std::move(request));
}

/// After a scheduler is gone every page is free.
inline void check_pool_empty(Engine& engine) {
  CHECK(engine.pool().check_integrity({}) == std::nullopt);
  CHECK(engine.pool().used_pages() == 0);
}

}  // namespace fathom::testing
