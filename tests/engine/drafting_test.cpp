// Guesses are evaluated beside the last token: whatever they are, an answer must be the one without them, to the bit.
#include "engine_fixture.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

/// The model that ships: its MTP block was trained, and its stories repeat.
EngineOptions shipped_model(bool mtp, int64_t context = 512) {
  EngineOptions o;
  o.model_path = FATHOM_FIXTURES "/../../models/tiny/tiny-q8_0.gguf";
  o.n_threads = 1;
  o.context = context;
  o.chunk_tokens = 96;
  o.mtp = mtp;
  return o;
}

Request story(const Engine& engine, const std::string& begin, int64_t max_tokens, float temperature, uint64_t seed) {
  Request r = request_for(engine.tokenizer().encode(begin, true), max_tokens);
  r.prompt.insert(r.prompt.begin(), engine.tokenizer().vocab().bos());
  r.options.ignore_eos = false;
  r.options.sampling.temperature = temperature;
  r.options.sampling.seed = seed;
  return r;
}

/// Answers of five words: they repeat themselves, and seldom as before.
class FewTokens : public TokenConstraint {
 public:
  explicit FewTokens(int64_t vocab) : mask_(static_cast<size_t>(vocab + 63) / 64) { mask_[1] = 0b11111; }
  std::span<const uint64_t> allowed() override { return mask_; }
  void accept(int32_t) override {}

 private:
  std::vector<uint64_t> mask_;
};

/// Answers that go round and round: from the second round on all guesses are right.
class Round : public TokenConstraint {
 public:
  Round(std::vector<int32_t> ids, int64_t vocab) : ids_(std::move(ids)), mask_(static_cast<size_t>(vocab + 63) / 64) {}
  std::span<const uint64_t> allowed() override {
    std::fill(mask_.begin(), mask_.end(), 0);
    const int32_t id = ids_[n_accepted_ % ids_.size()];
    mask_[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
    return mask_;
  }
  void accept(int32_t) override { ++n_accepted_; }

 private:
  std::vector<int32_t> ids_;
  std::vector<uint64_t> mask_;
  size_t n_accepted_ = 0;
};

SchedulerOptions drafting(DraftMode mode) {
  SchedulerOptions o;
  o.draft = mode;
  return o;
}

}  // namespace

TEST_CASE("answers are the same bits with guesses and without, alone and together, greedy and sampled") {
  const auto plain = Engine::load(shipped_model(false)), with_mtp = Engine::load(shipped_model(true));
  REQUIRE(with_mtp->has_mtp());
  REQUIRE_FALSE(plain->has_mtp());
  const std::string begins[] = {"Once upon a time", "There was a fox named Ben. There was a fox named",
                                "One two three four one two three four one two", "The bear said"};
  std::vector<Request> requests;
  for (size_t i = 0; i < std::size(begins); ++i)
    requests.push_back(story(*plain, begins[i], 90, i % 2 == 0 ? 0.0F : 0.9F, i));
  std::vector<Answer> want;
  {
    Scheduler scheduler(*plain, drafting(DraftMode::kOff));
    for (const Request& r : requests) want.push_back(answer(scheduler, r));
    CHECK(scheduler.stats().draft_tokens_total == 0);
  }
  for (Engine* engine : {plain.get(), with_mtp.get()}) {
    for (const DraftMode mode : {DraftMode::kAlways, DraftMode::kAuto}) {
      Scheduler scheduler(*engine, drafting(mode));
      for (size_t i = 0; i < requests.size(); ++i) CHECK(answer(scheduler, requests[i]).same_tokens(want[i]));
      std::vector<RequestHandle> handles;
      for (const Request& r : requests) handles.push_back(submit(scheduler, r));
      for (size_t i = 0; i < requests.size(); ++i) CHECK(read_all(handles[i]).same_tokens(want[i]));
      const SchedulerStats stats = scheduler.stats();
      if (mode == DraftMode::kAlways) {
        CHECK(stats.draft_tokens_total > 10);
        CHECK((stats.accepted_tokens_total > 10) == engine->has_mtp());  // these answers do not repeat
      }
      CHECK(stats.accepted_tokens_total <= stats.draft_tokens_total);
      CHECK(stats.used_pages == 0);
    }
    check_pool_empty(*engine);
  }
}

TEST_CASE("wrong guesses leave no trace, whatever the model keeps of a token") {
  for (const std::string file : {"v1/v1-f16.gguf", kLatentModel, "v32/v32-bf16.gguf", "v4/v4-mxfp4.gguf"}) {
    CAPTURE(file);
    EngineOptions options = small_engine_options(file);
    options.mtp = true;
    const auto engine = Engine::load(options);
    Request request = request_for(random_prompt(130, 4), 150);
    request.options.sampling.temperature = 8;
    request.constraint = std::make_shared<FewTokens>(engine->info().vocab_size);
    const auto answered = [&](DraftMode mode) {
      Scheduler scheduler(*engine, drafting(mode));
      Answer a = answer(scheduler, request);
      REQUIRE(a.generation.has_value());
      return a;
    };
    const Answer want = answered(DraftMode::kOff), got = answered(DraftMode::kAlways);
    CHECK(got.same_tokens(want));
    CHECK(got.generation->draft_tokens > got.generation->accepted_tokens + 20);
  }
}

TEST_CASE("the MTP block of the model that ships foretells most tokens of a greedy story") {
  const auto engine = Engine::load(shipped_model(true));
  Scheduler scheduler(*engine, drafting(DraftMode::kAlways));
  const Answer a = answer(scheduler, story(*engine, "Once upon a time", 150, 0, 1));
  REQUIRE(a.generation.has_value());
  CHECK(a.generation->draft_tokens > 50);
  CHECK(static_cast<double>(a.generation->accepted_tokens) > 0.6 * static_cast<double>(a.generation->draft_tokens));
}

TEST_CASE("an answer ends inside right guesses where it would have ended") {
  const auto engine = Engine::load(shipped_model(true));
  const auto colours = [&](int64_t max_tokens) {
    Request r = story(*engine, "Say it:", max_tokens, 0, 1);
    r.constraint =
        std::make_shared<Round>(engine->tokenizer().encode(" red green blue.", false), engine->info().vocab_size);
    return r;
  };
  std::vector<Answer> without;
  for (const DraftMode mode : {DraftMode::kOff, DraftMode::kAlways}) {
    Scheduler scheduler(*engine, drafting(mode));
    std::vector<Answer> answers;
    for (const int64_t max_tokens : {1, 2, 3, 7, 30}) answers.push_back(answer(scheduler, colours(max_tokens)));
    Request stops = colours(60);
    stops.options.stop = {"en blue. re"};
    answers.push_back(answer(scheduler, stops));
    if (mode == DraftMode::kOff) {
      without = answers;
      continue;
    }
    CHECK(scheduler.stats().accepted_tokens_total > 12);
    for (size_t i = 0; i < answers.size(); ++i) {
      CAPTURE(i);
      CHECK(answers[i].same_tokens(without[i]));
      CHECK(answers[i].generation->finish == without[i].generation->finish);
      CHECK(answers[i].generation->stop == without[i].generation->stop);
    }
  }
  check_pool_empty(*engine);
}

TEST_CASE("guesses neither outgrow the context nor take another answer's pages") {
  // Three pages and one: two answers of a page and a half each take turns.
  const auto small = Engine::load(shipped_model(true, 192)), large = Engine::load(shipped_model(true));
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 2; ++i) requests.push_back(story(*large, "Once upon a time", 100, 0.8F, i));
  requests.push_back(story(*large, "One two one two one two one two", 400, 0, 1));
  requests.back().options.ignore_eos = true;
  std::vector<Answer> want;
  for (const Request& r : requests) want.push_back(answer_alone(*large, r));
  Scheduler scheduler(*small, drafting(DraftMode::kAlways));
  std::vector<RequestHandle> handles;
  for (size_t i = 0; i < 2; ++i) handles.push_back(submit(scheduler, requests[i]));
  for (size_t i = 0; i < 2; ++i) CHECK(read_all(handles[i]).same_tokens(want[i]));
  const Answer cut = answer(scheduler, requests[2]);
  REQUIRE(cut.generation.has_value());
  CHECK(cut.generation->context_full);
  const auto n_prompt = static_cast<int64_t>(requests[2].prompt.size());
  CHECK(n_prompt + std::ssize(cut.ids) == 192 + 1);
  CHECK(std::equal(cut.ids.begin(), cut.ids.end(), want[2].ids.begin()));
}
