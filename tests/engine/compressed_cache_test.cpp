// V4 keeps rows of several tokens for good and recent rows for a while. Whatever is cut, shared, found again, saved or
// given up, a token's logits are the same bits.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "cache/prefix_tree.h"
#include "cache/sequence_file.h"
#include "cpu/cpu_backend.h"
#include "engine_fixture.h"
#include "support/save_sequence.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

constexpr const char* kCompressedModel = "v4/v4-mxfp4.gguf";
constexpr int64_t kTextTokens = 330;  // two rows of 128 tokens, and more rows of 4 than are chosen

/// Room for three texts.
EngineOptions roomy_options() {
  EngineOptions options = small_engine_options(kCompressedModel);
  options.context = 1024;
  return options;
}

std::vector<int32_t> text(uint32_t seed = 1, size_t n = kTextTokens) { return random_prompt(n, seed, 640); }

/// Evaluates tokens [sequence.length(), end) in chunks; logits of each.
std::vector<std::vector<float>> evaluate(Engine& engine, Sequence& sequence, const std::vector<int32_t>& tokens,
                                         int64_t end, int64_t chunk) {
  std::vector<std::vector<float>> logits;
  while (sequence.length() < end) {
    const int64_t at = sequence.length(), n = std::min(chunk, end - at);
    const StepPart part{&sequence, std::span(tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                        Outputs::kAll};
    REQUIRE(engine.step({&part, 1}) == StepStatus::kDone);
    for (int64_t i = 0; i < n; ++i) logits.emplace_back(engine.logits(i).begin(), engine.logits(i).end());
  }
  return logits;
}

/// Whether going on from where `sequence` is gives the last of `want`.
bool goes_on(Engine& engine, Sequence& sequence, const std::vector<int32_t>& tokens,
             const std::vector<std::vector<float>>& want, int64_t chunk = 96) {
  const auto first = static_cast<size_t>(sequence.length());
  const auto got = evaluate(engine, sequence, tokens, std::ssize(tokens), chunk);
  return std::equal(got.begin(), got.end(), want.begin() + static_cast<std::ptrdiff_t>(first), want.end());
}

const int64_t kEnds[] = {1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 191, 192, 193, 200, 255, 256, 257, 300, 329};

}  // namespace

TEST_CASE("compressed rows: chunks of any size give every token the same bits") {
  for (const std::string& isa : cpu_isa_names()) {
    CAPTURE(isa);
    EngineOptions options = small_engine_options(kCompressedModel);
    options.isa = isa;
    const auto engine = Engine::load(options);
    const std::vector<int32_t> tokens = text();
    std::optional<std::vector<std::vector<float>>> want;
    for (const int64_t chunk : {330, 1, 3, 7, 64, 128, 200}) {
      CAPTURE(chunk);
      if (isa == "reference" && chunk < 7 && chunk != 3) continue;
      Sequence sequence(engine->pool());
      const auto got = evaluate(*engine, sequence, tokens, kTextTokens, chunk);
      if (!want) want = got;
      CHECK(got == *want);
      const Sequence* live[] = {&sequence};
      CHECK(engine->pool().check_integrity(live) == std::nullopt);
    }
    check_pool_empty(*engine);
  }
}

TEST_CASE("compressed rows: beside others a sequence's logits are those it has alone") {
  const auto engine = Engine::load(roomy_options());
  std::vector<Sequence> together;
  std::vector<std::vector<int32_t>> texts;
  std::vector<std::vector<float>> want;
  for (const size_t n : {5u, 127u, 128u, 300u}) {
    texts.push_back(text(static_cast<uint32_t>(n), n));
    Sequence alone(engine->pool());
    want.push_back(evaluate(*engine, alone, texts.back(), static_cast<int64_t>(n), 96).back());
    together.emplace_back(engine->pool());
    evaluate(*engine, together.back(), texts.back(), static_cast<int64_t>(n) - 3, 50);
  }
  std::vector<StepPart> parts;
  for (size_t i = 0; i < texts.size(); ++i)
    parts.push_back({&together[i], std::span(texts[i]).last(3), Outputs::kLast});
  REQUIRE(engine->step(parts) == StepStatus::kDone);
  for (size_t i = 0; i < texts.size(); ++i) {
    CHECK(std::equal(want[i].begin(), want[i].end(), engine->logits(static_cast<int64_t>(i)).begin()));
  }
}

TEST_CASE("compressed rows: a text that is cut or forked goes on with the same bits") {
  const auto engine = Engine::load(roomy_options());
  const std::vector<int32_t> tokens = text();
  Sequence whole(engine->pool());
  const auto want = evaluate(*engine, whole, tokens, kTextTokens, 96);
  whole.clear();
  for (const int64_t end : kEnds) {
    CAPTURE(end);
    Sequence sequence(engine->pool());
    evaluate(*engine, sequence, tokens, end, 96);
    Sequence fork = sequence.fork();
    CHECK(goes_on(*engine, fork, tokens, want));
    CHECK(goes_on(*engine, sequence, tokens, want, 7));
    const Sequence* live[] = {&sequence, &fork};
    CHECK(engine->pool().check_integrity(live) == std::nullopt);
    fork.clear();
    // The last tokens can always be taken back; further back only where recent parts are left, else nothing stays.
    for (const int64_t back : {1, 17, 64, 200}) {
      CAPTURE(back);
      Sequence cut = sequence.fork();
      const int64_t n = cut.resumable(kTextTokens - back);
      CHECK((n == kTextTokens - back || (back > kRecentSlack && n == 0)));
      cut.truncate(n);
      CHECK(goes_on(*engine, cut, tokens, want));
    }
  }
  check_pool_empty(*engine);
}

TEST_CASE("compressed rows: a sequence keeps the recent rows of its end alone") {
  const auto engine = Engine::load(small_engine_options(kCompressedModel));
  const CacheLayout& layout = engine->pool().layout();
  REQUIRE(layout.has_recent());
  Sequence sequence(engine->pool());
  evaluate(*engine, sequence, text(), kTextTokens, 96);
  const int64_t most_pages = (layout.recent_tokens + kRecentSlack) / kPageTokens + 2;
  CHECK(engine->pool().recent_bytes() <= static_cast<size_t>(most_pages) * layout.recent_page_bytes());
  CHECK(engine->pool().recent_bytes() < static_cast<size_t>(engine->pool().used_pages()) * layout.recent_page_bytes());
  sequence.clear();
  CHECK(engine->pool().recent_bytes() == 0);
}

TEST_CASE("compressed rows: a beginning is found at any token, or where recent rows are left, with the same bits") {
  const auto engine = Engine::load(roomy_options());
  const std::vector<int32_t> tokens = text();
  Sequence fresh(engine->pool());
  const auto want = evaluate(*engine, fresh, tokens, kTextTokens, 96);
  fresh.clear();
  for (const int64_t max_recent : {100, 4, 0}) {
    CAPTURE(max_recent);
    PrefixTree tree(engine->pool(), engine->pool().n_pages(), max_recent);
    for (const int64_t end : kEnds) {
      CAPTURE(end);
      {
        Sequence sequence(engine->pool());
        evaluate(*engine, sequence, tokens, end, 96);
        tree.insert(std::span(tokens).first(static_cast<size_t>(end)), sequence);
      }
      for (const int64_t n : {end, end - 1, end - 30}) {
        if (n < 0) continue;
        CAPTURE(n);
        const auto beginning = std::span(tokens).first(static_cast<size_t>(n));
        const int64_t length = tree.match_length(beginning);
        Sequence found = tree.match(beginning);
        CHECK(found.length() == length);
        if (max_recent == 100) CHECK(length == n);
        if (max_recent == 0) CHECK(length == 0);
        CHECK(goes_on(*engine, found, tokens, want));
        found.clear();
        CHECK(tree.check_integrity() == std::nullopt);
        CHECK(engine->pool().check_integrity({}, tree.held_pages(), tree.held_recent()) == std::nullopt);
      }
    }
    tree.evict(2);
    CHECK(engine->pool().check_integrity({}, tree.held_pages(), tree.held_recent()) == std::nullopt);
    tree.clear();
    check_pool_empty(*engine);
  }
}

TEST_CASE("compressed rows: a saved text goes on after a restart, from any token whose recent rows it has") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("fathom-v4-" + std::to_string(::getpid()))).string();
  const std::vector<int32_t> tokens = text();
  std::vector<std::vector<float>> want;
  for (const int64_t end : {64, 100, 200, 321}) {
    CAPTURE(end);
    {
      const auto engine = Engine::load(small_engine_options(kCompressedModel));
      Sequence sequence(engine->pool());
      evaluate(*engine, sequence, tokens, end, 96);
      REQUIRE(testing::save_sequence(path, engine->cache_fingerprint(),
                                     std::span(tokens).first(static_cast<size_t>(end)), sequence));
      sequence.clear();
      if (want.empty()) want = evaluate(*engine, sequence, tokens, kTextTokens, 96);
    }
    const auto engine = Engine::load(small_engine_options(kCompressedModel));
    const SequenceFile file(path);
    file.check_fits(engine->cache_fingerprint(), engine->pool().layout(), 512, 640);
    CHECK(file.least_tokens() <= std::max<int64_t>(1, end - kRecentSlack));
    for (const int64_t n : {end, end - 1, file.least_tokens()}) {
      CAPTURE(n);
      std::optional<Sequence> restored = file.read(engine->pool(), n);
      REQUIRE(restored.has_value());
      CHECK(restored->length() == n);
      CHECK(goes_on(*engine, *restored, tokens, want));
    }
    check_pool_empty(*engine);
  }
  std::filesystem::remove(path);
}

TEST_CASE("compressed rows: damaged files are refused wherever the damage is") {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fathom-v4-damaged-" + std::to_string(::getpid()));
  const auto engine = Engine::load(small_engine_options(kCompressedModel));
  {
    const std::vector<int32_t> tokens = text(1, 70);
    Sequence sequence(engine->pool());
    evaluate(*engine, sequence, tokens, 70, 96);
    REQUIRE(testing::save_sequence(path, engine->cache_fingerprint(), tokens, sequence));
  }
  std::ifstream in(path, std::ios::binary);
  const std::string good{std::istreambuf_iterator<char>(in), {}};
  const auto is_refused = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    try {
      const SequenceFile file(path);
      file.check_fits(engine->cache_fingerprint(), engine->pool().layout(), 512, 640);
      return !file.read(engine->pool(), 70).has_value();
    } catch (const Error& e) {
      return e.code() == ErrorCode::kModel;
    }
  };
  CHECK_FALSE(is_refused(good));
  for (size_t at = 0; at < good.size(); at += at < 1200 ? 1 : 997) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x24);
    CAPTURE(at);
    CHECK(is_refused(bad));
    CHECK(is_refused(good.substr(0, at)));
  }
  check_pool_empty(*engine);
  std::filesystem::remove(path);
}

TEST_CASE("compressed rows: answers are the same with and without memory, beside others, and after giving way") {
  EngineOptions options = small_engine_options(kCompressedModel);
  options.context = 256;  // 5 pages: one sequence and a copy
  const auto engine = Engine::load(options);
  std::vector<Request> requests;
  const std::vector<int32_t> common = text(9, 100);
  for (uint32_t i = 0; i < 8; ++i) {
    std::vector<int32_t> prompt = random_prompt(20 + 10 * i, i, 640);
    if (i % 2 == 0) prompt.insert(prompt.begin(), common.begin(), common.end());
    requests.push_back(request_for(std::move(prompt), 60));
  }
  std::vector<Answer> alone;
  for (const Request& r : requests) alone.push_back(answer_alone(*engine, r));
  for (const int max_stall : {250, 0}) {
    CAPTURE(max_stall);
    SchedulerOptions scheduling;
    scheduling.max_stall = std::chrono::milliseconds(max_stall);
    {
      Scheduler scheduler(*engine, scheduling);
      std::vector<RequestHandle> handles;
      for (const Request& r : requests) handles.push_back(submit(scheduler, r));
      for (size_t i = 0; i < handles.size(); ++i) {
        CAPTURE(i);
        CHECK(read_all(handles[i]).same_tokens(alone[i]));
      }
      CHECK(scheduler.stats().preemptions_total > 0);
      // And again, from what is remembered.
      for (const size_t i : {7u, 0u}) CHECK(answer(scheduler, requests[i]).same_tokens(alone[i]));
    }
    check_pool_empty(*engine);
  }
}

TEST_CASE("compressed rows: the next turn of a conversation finds the last prompt, and the answer if it is in it") {
  const auto engine = Engine::load(small_engine_options(kCompressedModel));
  const std::vector<int32_t> prompt = text(4, 250);
  Answer first;
  Request with_answer, without_answer;
  std::map<bool, Answer> got;
  {
    Scheduler scheduler(*engine, {});
    first = answer(scheduler, request_for(prompt, 100));
    std::vector<int32_t> next = prompt;
    for (const int32_t id : text(5, 40)) next.push_back(id);
    without_answer = request_for(next, 10);
    next = prompt;
    next.insert(next.end(), first.ids.begin(), first.ids.end());
    for (const int32_t id : text(6, 40)) next.push_back(id);
    with_answer = request_for(next, 10);
    got[false] = answer(scheduler, without_answer);
    got[true] = answer(scheduler, with_answer);
  }
  CHECK(got[false].starts[0].cached_tokens == 250);
  CHECK(got[true].starts[0].cached_tokens == 349);
  CHECK(got[false].same_tokens(answer_alone(*engine, without_answer)));
  CHECK(got[true].same_tokens(answer_alone(*engine, with_answer)));
}

TEST_CASE("compressed rows: the third text with a beginning finds it, cut at a page where the second left the first") {
  EngineOptions options = roomy_options();
  options.chunk_tokens = 1024;  // ends of chunks would be found too
  const auto engine = Engine::load(options);
  const std::vector<int32_t> common = text(4, 230);
  std::vector<Request> requests;
  std::vector<Answer> got;
  {
    Scheduler scheduler(*engine, {});
    for (uint32_t i = 0; i < 3; ++i) {
      std::vector<int32_t> prompt = common;
      for (const int32_t id : text(10 + i, 300)) prompt.push_back(id);
      requests.push_back(request_for(prompt, 5));
      got.push_back(answer(scheduler, requests.back()));
    }
  }
  CHECK(got[0].starts[0].cached_tokens == 0);
  CHECK(got[1].starts[0].cached_tokens == 0);
  CHECK(got[2].starts[0].cached_tokens == 192);
  for (size_t i = 0; i < 3; ++i) CHECK(got[i].same_tokens(answer_alone(*engine, requests[i])));
}

TEST_CASE("compressed rows: guesses that are taken back change no bit of an answer") {
  const auto engine = Engine::load(roomy_options());
  std::vector<int32_t> prompt = text(3, 40);
  for (int i = 0; i < 4; ++i)
    for (size_t k = 0; k < 40; ++k) prompt.push_back(prompt[k]);  // to guess from
  const Request request = request_for(prompt, 150);
  std::vector<Answer> got;
  for (const DraftMode mode : {DraftMode::kOff, DraftMode::kAlways}) {
    SchedulerOptions options;
    options.draft = mode;
    Scheduler scheduler(*engine, options);
    got.push_back(answer(scheduler, request));
    if (mode == DraftMode::kAlways) CHECK(scheduler.stats().draft_tokens_total > 0);
  }
  CHECK(got[1].same_tokens(got[0]));
  check_pool_empty(*engine);
}
