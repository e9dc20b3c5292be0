// Many requests on one engine: what one answers must not depend on the others, on the order, on the cache or on luck.
#include "engine/scheduler.h"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <future>
#include <random>
#include <thread>

#include "core/error.h"
#include "core/float_convert.h"
#include "cpu/cpu_backend.h"
#include "engine_fixture.h"
#include "io/gguf.h"

using namespace fathom;
using namespace fathom::testing;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

/// Waits for an event of a kind, dropping others.
template <typename Wanted> Wanted wait_for(RequestHandle& handle) {
  for (;;) {
    std::optional<Event> event = handle.next(seconds(120));
    REQUIRE(event.has_value());
    if (auto* wanted = std::get_if<Wanted>(&*event)) return std::move(*wanted);
    REQUIRE_FALSE(std::holds_alternative<FailedEvent>(*event));
  }
}

bool has_finished(RequestHandle& handle) {
  while (const std::optional<Event> event = handle.next(milliseconds(0))) {
    if (std::holds_alternative<FinishedEvent>(*event)) return true;
  }
  return false;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class Only : public TokenConstraint {
 public:
  Only(std::vector<int32_t> ids, int64_t vocab) : ids_(std::move(ids)), mask_(static_cast<size_t>(vocab + 63) / 64) {}
  std::span<const uint64_t> allowed() override {
    if (accepted.size() == ids_.size()) throw std::runtime_error("nothing left to say");
    std::fill(mask_.begin(), mask_.end(), 0);
    const int32_t id = ids_[accepted.size()];
    mask_[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
    return mask_;
  }
  void accept(int32_t id) override { accepted.push_back(id); }
  std::vector<int32_t> accepted;

 private:
  std::vector<int32_t> ids_;
  std::vector<uint64_t> mask_;
};

/// Calls a function before every token, on the engine's thread, which stands still meanwhile.
class Probe : public TokenConstraint {
 public:
  explicit Probe(std::function<void(int n_tokens)> fn) : fn_(std::move(fn)) {}
  std::span<const uint64_t> allowed() override {
    fn_(n_tokens_);
    return {};
  }
  void accept(int32_t) override { ++n_tokens_; }

 private:
  std::function<void(int)> fn_;
  int n_tokens_ = 0;
};

Request probed(Request request, std::function<void(int)> fn) {
  request.constraint = std::make_shared<Probe>(std::move(fn));
  return request;
}

/// Holds the engine before the first token of a request until it is opened.
struct Gate {
  std::promise<void> reached, opened;
  std::function<void(int)> probe() {
    return [this](int n_tokens) {
      if (n_tokens > 0) return;
      reached.set_value();
      opened.get_future().wait();
    };
  }
};

}  // namespace

TEST_CASE("64 requests at once give what each gives alone, to the last bit") {
  for (const char* file : {kLatentModel, kIndexerModel}) {
    CAPTURE(file);
    const auto engine = Engine::load(small_engine_options(file));
    std::vector<Request> requests;
    std::mt19937 random(1);
    for (uint32_t i = 0; i < 64; ++i) {
      requests.push_back(request_for(random_prompt(1 + random() % 300, i % 40), 1 + random() % 12));
      if (i % 3 == 0) {
        requests.back().options.sampling.temperature = 1.5F;
        requests.back().options.sampling.seed = i;
      }
      requests.back().user = std::to_string(i % 3);
      requests.back().priority = static_cast<int>(i % 2);
    }
    std::vector<Answer> alone;
    for (const Request& r : requests) alone.push_back(answer_alone(*engine, r));
    for (const milliseconds max_stall :
         {milliseconds(0), milliseconds(250)}) {  // 0: every step is interrupted wherever it can be
      CAPTURE(max_stall.count());
      SchedulerOptions options;
      options.max_stall = max_stall;
      {
        Scheduler scheduler(*engine, options);
        std::vector<RequestHandle> handles;
        for (const Request& r : requests) handles.push_back(submit(scheduler, r));
        for (size_t i = 0; i < handles.size(); ++i) {
          CAPTURE(i);
          const Answer got = read_all(handles[i]);
          CHECK(got.same_tokens(alone[i]));
        }
        CHECK(scheduler.stats().used_pages == 0);
        CHECK(scheduler.stats().finished_total == 64);
      }
      check_pool_empty(*engine);
    }
  }
}

TEST_CASE("a hit gives the bits of a miss, wherever prefix and prompt end") {
  for (const char* file : {kLatentModel, "v1/v1-f16.gguf", "v3/v3-q4_k_m.gguf", kIndexerModel}) {
    CAPTURE(file);
    const auto engine = Engine::load(small_engine_options(file));
    for (const size_t shared : {1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257}) {
      CAPTURE(shared);
      const std::vector<int32_t> prefix = random_prompt(shared, static_cast<uint32_t>(shared));
      Scheduler scheduler(*engine, {});
      answer(scheduler, request_for(joined(prefix, random_prompt(40, 7)), 4));
      for (const size_t rest : {1, 30, 90}) {
        CAPTURE(rest);
        const Request request = request_for(joined(prefix, random_prompt(rest, 1000 + static_cast<uint32_t>(rest))), 6);
        const Answer got = answer(scheduler, request);
        REQUIRE(got.starts.size() == 1);
        // Above position 128 a block of 64 may be wanted in the other form.
        CHECK(got.starts[0].cached_tokens >= (shared <= 128 ? static_cast<int64_t>(shared) : 128));
        CHECK(got.generation->cached_tokens == got.starts[0].cached_tokens);
        Request cold = request;
        cold.use_cache = false;
        CHECK(got.same_tokens(answer(scheduler, cold)));
      }
    }
    check_pool_empty(*engine);
  }
}

TEST_CASE("an answer is found again by the next turn, and changes no bit of it") {
  EngineOptions options = small_engine_options();
  options.expand = {};
  const auto engine = Engine::load(options);
  Scheduler scheduler(*engine, {});
  std::vector<int32_t> prompt = random_prompt(50, 3);
  for (uint32_t turn = 0; turn < 5; ++turn) {
    CAPTURE(turn);
    const Answer first = answer(scheduler, request_for(prompt, 25));
    const auto known =
        static_cast<int64_t>(prompt.size() + first.ids.size()) - 1;  // the last token was never evaluated
    prompt = joined(joined(prompt, first.ids), random_prompt(20, turn));
    const Answer next = answer(scheduler, request_for(prompt, 5));
    CHECK(next.starts[0].cached_tokens == known);
    Request cold = request_for(prompt, 5);
    cold.use_cache = false;
    CHECK(next.same_tokens(answer(scheduler, cold)));
  }
}

TEST_CASE("requests that come together evaluate their common beginning once") {
  const auto engine = Engine::load(small_engine_options());
  const std::vector<int32_t> prefix = random_prompt(150, 9);
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) requests.push_back(request_for(joined(prefix, random_prompt(5 + i, i)), 4));
  requests.push_back(requests[2]);
  std::vector<Answer> alone;
  for (const Request& r : requests) alone.push_back(answer_alone(*engine, r));
  Scheduler scheduler(*engine, {});
  std::vector<RequestHandle> handles;
  for (const Request& r : requests) handles.push_back(submit(scheduler, r));
  for (size_t i = 0; i < handles.size(); ++i) CHECK(read_all(handles[i]).same_tokens(alone[i]));
  // Once the 150, and each its own few.
  CHECK(scheduler.stats().evaluated_tokens_total <= 150 + 6 * 12 + 7);
  CHECK(scheduler.stats().cached_tokens_total >= 6 * 150);
}

TEST_CASE("a pool too small for all preempts and loses nothing") {
  for (const char* file : {kLatentModel, kIndexerModel}) {
    CAPTURE(file);
    EngineOptions options = small_engine_options(file);
    options.context = 256;  // 5 pages: one sequence and a copy
    const auto engine = Engine::load(options);
    std::vector<Request> requests;
    for (uint32_t i = 0; i < 8; ++i) requests.push_back(request_for(random_prompt(20 + 10 * i, i), 120));
    for (const auto& [use_cache, max_stall] : {std::pair(true, 250), {true, 0}, {false, 250}, {false, 0}}) {
      CAPTURE(use_cache);
      CAPTURE(max_stall);
      std::vector<Answer> alone;
      for (Request& r : requests) {
        r.use_cache = use_cache;
        alone.push_back(answer_alone(*engine, r));
      }
      SchedulerOptions scheduling;
      scheduling.max_stall = milliseconds(max_stall);
      {
        Scheduler scheduler(*engine, scheduling);
        std::vector<RequestHandle> handles;
        for (const Request& r : requests) handles.push_back(submit(scheduler, r));
        for (size_t i = 0; i < handles.size(); ++i) {
          CAPTURE(i);
          CHECK(read_all(handles[i]).same_tokens(alone[i]));
        }
        CHECK(scheduler.stats().preemptions_total > 0);
        CHECK(scheduler.stats().used_pages == 0);
      }
      check_pool_empty(*engine);
    }
  }
}

TEST_CASE("the context's end ends an answer, alone and beside others") {
  EngineOptions options = small_engine_options();
  options.context = 128;
  const auto engine = Engine::load(options);
  Scheduler scheduler(*engine, {});
  std::vector<RequestHandle> handles;
  for (uint32_t i = 0; i < 3; ++i) handles.push_back(submit(scheduler, request_for(random_prompt(100, i), 500)));
  for (RequestHandle& handle : handles) {
    const Answer got = read_all(handle);
    REQUIRE(got.generation.has_value());
    CHECK(got.generation->finish == FinishReason::kLength);
    CHECK(got.generation->context_full);
    CHECK(got.ids.size() == 29);  // 28 more fit, and their logits give one
  }
  CHECK_THROWS_AS(scheduler.submit(request_for(random_prompt(128, 1))), Error);
  CHECK(answer(scheduler, request_for(random_prompt(128, 1), 0)).generation->finish == FinishReason::kLength);
}

TEST_CASE("cancelled anywhere, a request gives its pages back and harms nobody") {
  const auto engine = Engine::load(small_engine_options());
  const Request steady = request_for(random_prompt(60, 5), 60);
  const Answer want = answer_alone(*engine, steady);
  {
    Scheduler scheduler(*engine, {});
    std::mt19937 random(3);
    for (int round = 0; round < 10; ++round) {
      RequestHandle kept = submit(scheduler, steady);
      std::vector<RequestHandle> others;
      for (uint32_t i = 0; i < 10; ++i)
        others.push_back(submit(scheduler, request_for(random_prompt(1 + random() % 400, random()), 50)));
      for (RequestHandle& handle : others) {
        for (size_t events = random() % 12; events > 0 && !handle.done(); --events) handle.next(milliseconds(5));
        if (random() % 2 == 0) handle.cancel();
      }
      others.clear();  // a handle that goes cancels too
      CHECK(read_all(kept).same_tokens(want));
    }
    const SchedulerStats stats = scheduler.stats();
    for (int i = 0; scheduler.stats().running + scheduler.stats().queued > 0 && i < 10000; ++i)
      std::this_thread::sleep_for(milliseconds(1));
    CHECK(scheduler.stats().used_pages == 0);
    CHECK(stats.failed_total == 0);
  }
  check_pool_empty(*engine);
}

TEST_CASE("a cancelled request says so, with what it had; a waiting one ends too") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 1;
  Scheduler scheduler(*engine, options);
  RequestHandle running = submit(scheduler, request_for(random_prompt(20, 1), 400));
  const TokenEvent first = wait_for<TokenEvent>(running);
  RequestHandle waiting = submit(scheduler, request_for(random_prompt(20, 2), 4));
  waiting.cancel();
  CHECK(wait_for<FinishedEvent>(waiting).generation.finish == FinishReason::kInterrupted);
  wait_for<TokenEvent>(running);
  running.cancel();
  const Generation g = wait_for<FinishedEvent>(running).generation;
  CHECK(g.finish == FinishReason::kInterrupted);
  REQUIRE(!g.token_ids.empty());
  CHECK(g.token_ids[0] == *first.id);
}

/// A prompt of one chunk beside an answer, under a bound that interrupts the chunk after every operation. `inside` is
/// called before each token that the answer gets meanwhile.
struct LongStep {
  explicit LongStep(std::function<void(LongStep&, int n_inside)> inside) {
    EngineOptions with_long_chunks = small_engine_options();
    with_long_chunks.chunk_tokens = 400;
    with_long_chunks.expand = {4096, 256};
    engine = Engine::load(with_long_chunks);
    SchedulerOptions options;
    options.max_stall = milliseconds(0);
    options.event_buffer = 1000;
    scheduler.emplace(*engine, options);
    talking.emplace(
        submit(*scheduler, probed(request_for(random_prompt(10, 1), 400), [this, inside, hold = gate.probe()](int n) {
          hold(n);
          if (n > 0 && prompt_begins && !prompt_ends) inside(*this, n_inside++);
        })));
    gate.reached.get_future().wait();
    reading.emplace(
        submit(*scheduler, probed(request_for(random_prompt(300, 2), 1), [this](int) { prompt_ends = true; })));
    prompt_begins = true;
    gate.opened.set_value();
  }

  std::unique_ptr<Engine> engine;
  std::optional<Scheduler> scheduler;
  Gate gate;
  std::optional<RequestHandle> talking, reading;
  std::atomic<bool> prompt_begins = false, prompt_ends = false;
  int n_inside = 0;
};

TEST_CASE("an answer gets its tokens inside the step of a long prompt") {
  LongStep step([](LongStep&, int) {});
  const Generation prompt = wait_for<FinishedEvent>(*step.reading).generation;
  CHECK(step.n_inside >= 10);  // one chunk, some 30 operations
  Request alone = request_for(random_prompt(300, 2), 1);
  CHECK(prompt.token_ids == answer_alone(*Engine::load(small_engine_options()), alone).ids);
}

TEST_CASE("a prompt that is cancelled inside a step ends it, and its pages are free") {
  LongStep step([](LongStep& s, int n_inside) {
    if (n_inside == 2) s.reading->cancel();
  });
  CHECK(wait_for<FinishedEvent>(*step.reading).generation.finish == FinishReason::kInterrupted);
  CHECK(step.scheduler->stats().evaluated_tokens_total == 10);  // the other's prompt: the step did not come to its end
  step.talking->cancel();
  CHECK(wait_for<FinishedEvent>(*step.talking).generation.finish == FinishReason::kInterrupted);
  CHECK(step.scheduler->stats().used_pages == 0);
}

TEST_CASE("an answer that is cancelled inside the step of another goes at once") {
  int ended_after = 0;
  LongStep step([&](LongStep& s, int n_inside) {
    if (n_inside == 2) s.talking->cancel();
    ended_after = n_inside;
  });
  CHECK(wait_for<FinishedEvent>(*step.reading).generation.finish == FinishReason::kLength);
  CHECK(ended_after == 2);
  CHECK(wait_for<FinishedEvent>(*step.talking).generation.finish == FinishReason::kInterrupted);
}

TEST_CASE("a short prompt that comes during the step of a long one is answered inside it") {
  std::optional<RequestHandle> late;
  bool was_inside = false;
  LongStep step([&](LongStep& s, int n_inside) {
    if (n_inside == 2)
      late.emplace(submit(*s.scheduler, probed(request_for(random_prompt(20, 3), 1),
                                               [&s, &was_inside](int) { was_inside = !s.prompt_ends; })));
  });
  wait_for<FinishedEvent>(*step.reading);
  CHECK(wait_for<FinishedEvent>(*late).generation.finish == FinishReason::kLength);
  CHECK(was_inside);
}

TEST_CASE(
    "an answer waits beside a long prompt as max_stall says: not longer, and not so short that the prompt starves") {
  // Milliseconds that pass by being asked for: one for every operation, a few more for each step.
  constexpr int64_t kReads = 8;
  for (const auto& [max_stall, decode_cost] : {std::pair<int64_t, int64_t>{8, 1}, {8, 6}, {20, 1}, {1000, 1}}) {
    CAPTURE(max_stall);
    CAPTURE(decode_cost);
    EngineOptions long_chunks = small_engine_options();
    long_chunks.chunk_tokens = 100;
    long_chunks.expand = {4096, 256};
    const auto engine = Engine::load(long_chunks);
    std::atomic<int64_t> time_ms = 0;
    SchedulerOptions options;
    options.max_stall = milliseconds(max_stall);
    options.event_buffer = 1000;
    options.draft = DraftMode::kOff;  // a token each step
    options.clock = [&] { return std::chrono::steady_clock::time_point(milliseconds(++time_ms)); };
    Scheduler scheduler(*engine, options);
    std::atomic<bool> prompt_ends = false;
    std::promise<void> reached, opened;
    std::vector<int64_t> token_times;
    int64_t prompt_end_time = 0;
    RequestHandle talking = submit(scheduler, probed(request_for(random_prompt(10, 1), 100), [&](int n_tokens) {
                                     time_ms += decode_cost;
                                     if (n_tokens == 20) {  // what a token costs is known by now
                                       reached.set_value();
                                       opened.get_future().wait();
                                     }
                                     if (n_tokens >= 20 && !prompt_ends) token_times.push_back(time_ms);
                                   }));
    reached.get_future().wait();
    RequestHandle reading = submit(scheduler, probed(request_for(random_prompt(300, 2), 1), [&](int) {
                                     prompt_ends = true;
                                     prompt_end_time = time_ms;
                                   }));
    opened.set_value();
    wait_for<FinishedEvent>(reading);
    talking.cancel();
    wait_for<FinishedEvent>(talking);
    const int64_t bound = std::max(max_stall, max_stall / 2 + decode_cost) + kReads;
    int64_t longest = 0;
    for (size_t i = 1; i < token_times.size(); ++i) longest = std::max(longest, token_times[i] - token_times[i - 1]);
    CAPTURE(longest);
    CHECK(longest <= bound);
    CHECK(prompt_end_time - token_times.back() <= bound);
    const int64_t prompt_time = prompt_end_time - token_times.front();
    CAPTURE(prompt_time);
    if (max_stall < 1000) CHECK(prompt_time > 3 * bound);  // or there would be nothing to bound
    CHECK(static_cast<int64_t>(token_times.size()) <= 4 + prompt_time / (max_stall / 2));
  }
}

TEST_CASE("a short prompt does not wait for the end of a long one") {
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, {});
  Gate gate;
  RequestHandle first = submit(scheduler, probed(request_for(random_prompt(10, 1), 1), gate.probe()));
  gate.reached.get_future().wait();
  RequestHandle large = submit(scheduler, request_for(random_prompt(300, 2), 1));
  bool large_first = true;
  RequestHandle small =
      submit(scheduler, probed(request_for(random_prompt(20, 3), 1), [&](int) { large_first = has_finished(large); }));
  gate.opened.set_value();
  wait_for<FinishedEvent>(small);
  CHECK_FALSE(large_first);
}

TEST_CASE("a reader that stops reading waits alone, and is dropped in the end") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.event_buffer = 4;
  {
    Scheduler scheduler(*engine, options);
    const Request request = request_for(random_prompt(20, 1), 40);
    RequestHandle slow = submit(scheduler, request);
    const Answer other = answer(scheduler, request_for(random_prompt(30, 2), 60));
    CHECK(other.ids.size() == 60);
    CHECK(scheduler.stats().generated_tokens_total == 64);
    // It goes on where it stood, and nothing was lost.
    CHECK(read_all(slow).same_tokens(answer_alone(*Engine::load(small_engine_options()), request)));
  }
  options.reader_patience = milliseconds(1);
  Scheduler scheduler(*engine, options);
  RequestHandle gone = submit(scheduler, request_for(random_prompt(20, 1), 40));
  for (int i = 0; scheduler.stats().failed_total == 0 && i < 10000; ++i) std::this_thread::sleep_for(milliseconds(1));
  const Answer got = read_all(gone);
  REQUIRE(got.error.has_value());
  CHECK(std::string(got.error->what()).find("reader") != std::string::npos);
  CHECK(scheduler.stats().used_pages == 0);
}

TEST_CASE("a full queue refuses at once, exactly as many as there is no place for") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 4;
  options.max_queued = 4;
  Scheduler scheduler(*engine, options);
  std::vector<RequestHandle> accepted;
  int refused = 0;
  for (uint32_t i = 0; i < 64; ++i) {
    auto result = scheduler.submit(request_for(random_prompt(30, i), 400));
    if (auto* handle = std::get_if<RequestHandle>(&result)) {
      accepted.push_back(std::move(*handle));
    } else {
      CHECK(std::get<Refusal>(result) == Refusal::kQueueFull);
      ++refused;
    }
  }
  CHECK(accepted.size() == 8);
  CHECK(refused == 56);
  for (RequestHandle& handle : accepted) handle.cancel();
  for (RequestHandle& handle : accepted) read_all(handle);
  CHECK(answer(scheduler, request_for(random_prompt(30, 1), 2)).ids.size() == 2);
  CHECK(scheduler.stats().refused_total == 56);
}

TEST_CASE("the urgent goes first, and takes the place of the less urgent") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 1;
  options.event_buffer = 1000;
  const Request slow = request_for(random_prompt(20, 1), 300);
  const Answer want = answer_alone(*engine, slow);
  Scheduler scheduler(*engine, options);
  Gate gate;
  RequestHandle first = submit(scheduler, probed(slow, gate.probe()));
  gate.reached.get_future().wait();
  RequestHandle second = submit(scheduler, request_for(random_prompt(20, 2), 2));
  bool overtaken = false;
  Request urgent = probed(request_for(random_prompt(20, 3), 1),
                          [&](int) { overtaken = !has_finished(first) && !has_finished(second); });
  urgent.priority = 1;
  RequestHandle third = submit(scheduler, urgent);
  gate.opened.set_value();
  wait_for<FinishedEvent>(third);
  CHECK(overtaken);
  CHECK(scheduler.stats().preemptions_total == 1);
  CHECK(wait_for<FinishedEvent>(first).generation.token_ids == want.ids);
  wait_for<FinishedEvent>(second);
}

TEST_CASE("users take turns, whoever has had least goes next") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 1;
  Scheduler scheduler(*engine, options);
  Gate gate;
  std::vector<RequestHandle> many;
  for (uint32_t i = 0; i < 6; ++i) {
    Request r = request_for(random_prompt(20, i), 30);
    if (i == 0) r = probed(r, gate.probe());
    r.user = "many";
    many.push_back(submit(scheduler, std::move(r)));
  }
  gate.reached.get_future().wait();
  int n_before = 0;
  Request r = probed(request_for(random_prompt(20, 99), 1), [&](int) {
    for (RequestHandle& handle : many) n_before += has_finished(handle) ? 1 : 0;
  });
  r.user = "one";
  RequestHandle one = submit(scheduler, std::move(r));
  gate.opened.set_value();
  wait_for<FinishedEvent>(one);
  CHECK(n_before == 1);
}

TEST_CASE("a user with nothing running gets a place from one with several") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 2;
  options.event_buffer = 1000;
  std::vector<Request> requests;
  std::vector<Answer> want;
  for (uint32_t i = 0; i < 2; ++i) {
    requests.push_back(request_for(random_prompt(20, i), 200));
    want.push_back(answer_alone(*engine, requests[i]));
    requests[i].user = "many";
  }
  Scheduler scheduler(*engine, options);
  Gate gate;
  requests[1] = probed(requests[1], gate.probe());
  std::vector<RequestHandle> many;
  for (const Request& r : requests) many.push_back(submit(scheduler, r));
  gate.reached.get_future().wait();
  Request r = request_for(random_prompt(20, 99), 3);
  r.user = "one";
  RequestHandle one = submit(scheduler, std::move(r));
  gate.opened.set_value();
  wait_for<FinishedEvent>(one);
  CHECK(scheduler.stats().preemptions_total == 1);
  for (size_t i = 0; i < 2; ++i) CHECK(read_all(many[i]).same_tokens(want[i]));
}

TEST_CASE("a place is taken from a request whose reader has stopped") {
  const auto engine = Engine::load(small_engine_options());
  SchedulerOptions options;
  options.max_running = 1;
  options.event_buffer = 2;
  const Request request = request_for(random_prompt(20, 1), 30);
  const Answer want = answer_alone(*engine, request);
  Scheduler scheduler(*engine, options);
  RequestHandle stopped = submit(scheduler, request);
  CHECK(answer(scheduler, request_for(random_prompt(30, 2), 20)).ids.size() == 20);
  CHECK(read_all(stopped).same_tokens(want));
}

TEST_CASE("constraints are asked and told, and what they throw fails their request only") {
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, {});
  const Request plain = request_for(random_prompt(40, 1), 40);
  RequestHandle beside = submit(scheduler, plain);
  Request request = request_for(random_prompt(40, 2), 3);
  const std::vector<int32_t> wanted{70, 65, 81};
  auto only = std::make_shared<Only>(wanted, engine->info().vocab_size);
  request.constraint = only;
  request.top_logprobs = 5;
  RequestHandle handle = submit(scheduler, request);
  const TokenEvent first = wait_for<TokenEvent>(handle);
  CHECK(first.id == 70);
  REQUIRE(first.top_logprobs.size() == 5);
  CHECK(first.top_logprobs[0].logprob >= first.logprob);
  wait_for<FinishedEvent>(handle);
  CHECK(only->accepted == wanted);

  request.constraint = std::make_shared<Only>(wanted, engine->info().vocab_size);
  request.options.max_tokens = 10;
  const Answer failed = answer(scheduler, request);
  REQUIRE(failed.error.has_value());
  CHECK(std::string(failed.error->what()).find("nothing left to say") != std::string::npos);
  CHECK(failed.ids == wanted);
  CHECK(read_all(beside).ids.size() == 40);
}

TEST_CASE("logits that are no numbers fail their request and leave the others as they were") {
  const auto file = std::make_shared<const GgufModel>(GgufModel::open(FATHOM_FIXTURES "/models/v2/v2-bf16.gguf"));
  ModelSource source{file->metadata(), file->tensors(), file->path(), file->size_bytes(), 0, file, {}};
  Tensor& table = source.tensors.at("token_embd.weight");
  REQUIRE(table.dtype == DType::kBF16);
  std::vector<uint16_t> copy(table.as<uint16_t>(), table.as<uint16_t>() + table.dim(0) * table.dim(1));
  constexpr int32_t kPoison = 77;
  for (int64_t i = 0; i < table.dim(1); ++i) copy[static_cast<size_t>(kPoison * table.dim(1) + i)] = f32_to_bf16(NAN);
  table.data = reinterpret_cast<std::byte*>(copy.data());
  for (const std::string& isa : cpu_isa_names()) {
    CAPTURE(isa);
    EngineOptions options = small_engine_options();
    options.isa = isa;
    const auto engine = Engine::from_source(source, options);
    std::vector<int32_t> good = random_prompt(60, 1, 70), bad = good;
    bad[40] = kPoison;
    const Request request = request_for(good, 12);
    const Answer want = answer_alone(*engine, request);
    Scheduler scheduler(*engine, {});
    RequestHandle a = submit(scheduler, request), b = submit(scheduler, request_for(bad, 12)),
                  c = submit(scheduler, request);
    CHECK(read_all(a).same_tokens(want));
    const Answer failed = read_all(b);
    REQUIRE(failed.error.has_value());
    CHECK(failed.error->code() == ErrorCode::kRuntime);
    CHECK(read_all(c).same_tokens(want));
    CHECK(scheduler.stats().used_pages == 0);
  }
}

TEST_CASE("wrong requests are refused before they cost anything") {
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, {});
  CHECK_THROWS_AS(scheduler.submit(request_for({})), Error);
  CHECK_THROWS_AS(scheduler.submit(request_for({-1})), Error);
  CHECK_THROWS_AS(scheduler.submit(request_for({1 << 30})), Error);
  Request request = request_for({1});
  request.top_logprobs = 21;
  CHECK_THROWS_AS(scheduler.submit(request), Error);
  request = request_for({1}, -1);
  CHECK_THROWS_AS(scheduler.submit(request), Error);
  CHECK(scheduler.stats().queued == 0);
  SchedulerOptions options;
  options.max_running = 0;
  CHECK_THROWS_AS(Scheduler(*engine, options), Error);
}

TEST_CASE("shutdown lets answers finish, then ends what is left, and refuses what is new") {
  const auto engine = Engine::load(small_engine_options());
  {
    Scheduler scheduler(*engine, {});
    std::vector<RequestHandle> handles;
    for (uint32_t i = 0; i < 12; ++i) handles.push_back(submit(scheduler, request_for(random_prompt(30, i), 5)));
    scheduler.shutdown(seconds(120));
    for (RequestHandle& handle : handles) CHECK(read_all(handle).ids.size() == 5);
    CHECK(std::get<Refusal>(scheduler.submit(request_for({1}))) == Refusal::kShuttingDown);
  }
  auto scheduler = std::make_unique<Scheduler>(*engine, SchedulerOptions{});
  RequestHandle endless = submit(*scheduler, request_for(random_prompt(30, 1), 480));
  wait_for<TokenEvent>(endless);
  scheduler->shutdown(milliseconds(0));
  scheduler.reset();
  CHECK(wait_for<FinishedEvent>(endless).generation.finish == FinishReason::kInterrupted);
  check_pool_empty(*engine);
}
