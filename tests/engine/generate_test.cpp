// One answer after another through generate(): what chat and run do.
#include "engine/generate.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "engine_fixture.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

class Refuses : public TokenConstraint {
 public:
  std::span<const uint64_t> allowed() override { throw Error(ErrorCode::kRuntime, "constraint: nothing fits"); }
  void accept(int32_t) override {}
};

}  // namespace

TEST_CASE("every turn of a conversation is answered as a fresh scheduler answers it") {
  const auto engine = Engine::load(small_engine_options());
  std::vector<int32_t> prompt = random_prompt(70, 3);
  std::vector<Request> turns;
  std::vector<Generation> answers;
  std::vector<std::string> texts;
  {
    Scheduler scheduler(*engine, one_reader());
    for (uint32_t turn = 0; turn < 4; ++turn) {
      turns.push_back(request_for(prompt, 20));
      std::string& text = texts.emplace_back();
      GenerateCallbacks callbacks;
      callbacks.on_text = [&](std::string_view piece) { text += piece; };
      answers.push_back(generate(scheduler, turns.back(), callbacks));
      prompt.insert(prompt.end(), answers.back().token_ids.begin(), answers.back().token_ids.end());
      const std::vector<int32_t> next = random_prompt(45, 100 + turn);
      prompt.insert(prompt.end(), next.begin(), next.end());
    }
  }
  for (size_t turn = 0; turn < turns.size(); ++turn) {
    CAPTURE(turn);
    const Answer want = answer_alone(*engine, turns[turn]);
    CHECK(answers[turn].token_ids == want.ids);
    CHECK(answers[turn].text == want.text);
    CHECK(texts[turn] == want.text);
    CHECK(answers[turn].cached_tokens >= (turn == 0 ? 0 : 70));
  }
  check_pool_empty(*engine);
}

TEST_CASE("progress of a prompt goes from what was cached to all of it") {
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, one_reader());
  const std::vector<int32_t> prompt = random_prompt(300, 1);
  Request beginning = request_for({prompt.begin(), prompt.begin() + 100}, 0);
  CHECK(generate(scheduler, beginning, {}).finish == FinishReason::kLength);
  std::vector<uint64_t> seen;
  GenerateCallbacks callbacks;
  callbacks.on_prefill = [&](uint64_t done, uint64_t total) {
    CHECK(total == 300);
    seen.push_back(done);
  };
  generate(scheduler, request_for(prompt, 1), callbacks);
  REQUIRE(seen.size() >= 2);
  CHECK(seen.front() == 100);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  CHECK(seen.back() == 300);
}

TEST_CASE("an interrupt ends an answer with what it had, and the next one is whole") {
  const auto engine = Engine::load(small_engine_options());
  const Request request = request_for(random_prompt(30, 1), 400);
  const Answer whole = answer_alone(*engine, request);
  Scheduler scheduler(*engine, one_reader());
  std::string text;
  GenerateCallbacks callbacks;
  callbacks.on_text = [&](std::string_view piece) { text += piece; };
  callbacks.interrupted = [&] { return !text.empty(); };
  const Generation got = generate(scheduler, request, callbacks);
  CHECK(got.finish == FinishReason::kInterrupted);
  CHECK(got.text == text);
  REQUIRE(!got.token_ids.empty());
  REQUIRE(got.token_ids.size() < whole.ids.size());
  CHECK(std::equal(got.token_ids.begin(), got.token_ids.end(), whole.ids.begin()));
  callbacks.interrupted = [] { return true; };
  CHECK(generate(scheduler, request_for(random_prompt(300, 2), 400), callbacks).finish == FinishReason::kInterrupted);
  CHECK(generate(scheduler, request, {}).token_ids == whole.ids);
}

TEST_CASE("a callback that throws ends the request, and the next one is whole") {
  const auto engine = Engine::load(small_engine_options());
  const Request request = request_for(random_prompt(30, 1), 40);
  const Answer whole = answer_alone(*engine, request);
  Scheduler scheduler(*engine, one_reader());
  GenerateCallbacks callbacks;
  callbacks.on_text = [](std::string_view) { throw std::runtime_error("nobody reads"); };
  CHECK_THROWS_WITH(generate(scheduler, request, callbacks), "nobody reads");
  CHECK(generate(scheduler, request, {}).token_ids == whole.ids);
  CHECK(scheduler.stats().used_pages == 0);
}

TEST_CASE("what a request is refused or fails with is thrown") {
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, one_reader());
  CHECK_THROWS_WITH_AS(generate(scheduler, request_for(random_prompt(512, 1)), {}),
                       doctest::Contains("longer than the context"), Error);
  Request request = request_for(random_prompt(5, 1));
  request.constraint = std::make_shared<Refuses>();
  CHECK_THROWS_WITH_AS(generate(scheduler, request, {}), doctest::Contains("nothing fits"), Error);
}
