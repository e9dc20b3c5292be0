// Texts that survive the program: found again by content and model, damaged files refused and evaluated anew.
#include <stdlib.h>

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "engine/text_cache.h"
#include "engine_fixture.h"

using namespace fathom;
using namespace fathom::testing;
namespace fs = std::filesystem;

namespace {

struct TempFolder {
  fs::path path;
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "fathom-disk-cache-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

SchedulerOptions with_disk(const fs::path& folder, uint64_t max_bytes = 1 << 30) {
  SchedulerOptions options;
  options.disk = DiskCacheOptions{folder, max_bytes};
  return options;
}

std::vector<fs::path> saved_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".fkv") files.push_back(entry.path());
  }
  return files;
}

/// Answers once in a process of its own, so to say: nothing but the folder is left of it.
Answer answer_once(const fs::path& folder, const Request& request,
                   EngineOptions engine_options = small_engine_options(), uint64_t max_bytes = 1 << 30) {
  const auto engine = Engine::load(engine_options);
  Answer got;
  {
    Scheduler scheduler(*engine, with_disk(folder, max_bytes));
    got = answer(scheduler, request);
    scheduler.shutdown(std::chrono::seconds(60));
    CHECK(scheduler.stats().used_pages == 0);
  }
  check_pool_empty(*engine);
  return got;
}

}  // namespace

TEST_CASE("a text is found again after a restart, with the same bits") {
  for (const char* file : {kLatentModel, kIndexerModel}) {
    for (const size_t n : {256, 319, 320, 321, 400}) {
      CAPTURE(file);
      CAPTURE(n);
      const TempFolder folder;
      const EngineOptions options = small_engine_options(file);
      const Request request = request_for(random_prompt(n, static_cast<uint32_t>(n)), 10);
      const Answer first = answer_once(folder.path / "cache", request, options);
      CHECK(first.starts[0].cached_tokens == 0);
      CHECK(saved_files(folder.path / "cache").size() == 1);
      const Answer again = answer_once(folder.path / "cache", request, options);
      CHECK(again.starts[0].cached_tokens == static_cast<int64_t>(n) - 1);
      CHECK(again.same_tokens(first));
    }
  }
}

TEST_CASE("a longer text goes on from a saved one") {
  const TempFolder folder;
  std::vector<int32_t> prompt = random_prompt(300, 1);
  answer_once(folder.path, request_for(prompt, 5));
  for (const int32_t id : random_prompt(60, 2)) prompt.push_back(id);
  const Request request = request_for(prompt, 10);
  const Answer got = answer_once(folder.path, request);
  CHECK(got.starts[0].cached_tokens >= 256);
  const auto engine = Engine::load(small_engine_options());
  CHECK(got.same_tokens(answer_alone(*engine, request)));
}

TEST_CASE("damaged files are refused, said so, and evaluated anew") {
  const TempFolder folder;
  const Request request = request_for(random_prompt(300, 1), 10);
  const Answer first = answer_once(folder.path, request);
  for (const uint64_t place : {9u, 60u, 2000u, 9000u}) {
    CAPTURE(place);
    const std::vector<fs::path> files = saved_files(folder.path);
    REQUIRE(files.size() == 1);
    REQUIRE(fs::file_size(files[0]) > place);
    std::fstream file(files[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(place));
    const char byte = static_cast<char>(file.get() ^ 0x40);
    file.seekp(static_cast<std::streamoff>(place));
    file.put(byte);
    file.close();
    const Answer again = answer_once(folder.path, request);
    CHECK(again.starts[0].cached_tokens == 0);
    CHECK(again.same_tokens(first));
  }
}

TEST_CASE("files of another model, cache type or form of attention are not found") {
  const TempFolder folder;
  const Request request = request_for(random_prompt(300, 1), 5);
  answer_once(folder.path, request);
  EngineOptions other_type = small_engine_options(), other_form = small_engine_options(),
                other_kernels = small_engine_options();
  other_type.cache_type = DType::kF32;
  other_form.attention = AttentionForm::kAbsorbed;
  other_kernels.isa = "reference";
  for (const EngineOptions& options :
       {other_type, other_form, other_kernels, small_engine_options("v2lite/v2lite-iq4_xs-old.gguf")}) {
    CHECK(answer_once(folder.path, request, options).starts[0].cached_tokens == 0);
  }
  CHECK(answer_once(folder.path, request).starts[0].cached_tokens == 299);
}

TEST_CASE("the folder keeps its size, and the latest texts") {
  const TempFolder folder;
  answer_once(folder.path, request_for(random_prompt(300, 1), 2));
  const uint64_t one = fs::file_size(saved_files(folder.path).at(0));
  for (uint32_t i = 2; i < 6; ++i)
    answer_once(folder.path, request_for(random_prompt(300, i), 2), small_engine_options(), 2 * one + one / 2);
  CHECK(saved_files(folder.path).size() == 2);
  CHECK(answer_once(folder.path, request_for(random_prompt(300, 5), 2)).starts[0].cached_tokens == 299);
  CHECK(answer_once(folder.path, request_for(random_prompt(300, 2), 2)).starts[0].cached_tokens == 0);
}

TEST_CASE("a disk that fails stops no answer") {
  const TempFolder folder;
  const auto engine = Engine::load(small_engine_options());
  Scheduler scheduler(*engine, with_disk(folder.path / "cache"));
  fs::remove_all(folder.path / "cache");
  std::ofstream(folder.path / "cache") << "not a folder";
  CHECK(answer(scheduler, request_for(random_prompt(300, 1), 5)).ids.size() == 5);
  scheduler.shutdown(std::chrono::seconds(60));
  CHECK(scheduler.stats().last_disk_problem.has_value());
  CHECK_THROWS_AS(Scheduler(*engine, with_disk(folder.path / "cache")), Error);
}

/// A text of 300 tokens in a cache with a folder, waiting to be saved: five pages.
struct Unsaved {
  const TempFolder folder;
  const std::unique_ptr<Engine> engine = Engine::load(small_engine_options());
  TextCache cache{*engine, engine->pool().n_pages(), DiskCacheOptions{folder.path, 1 << 30}};

  Unsaved() {
    Sequence sequence(engine->pool());
    const std::vector<int32_t> prompt = random_prompt(300, 1);
    REQUIRE(engine->prefill(sequence, prompt, Outputs::kNone));
    cache.keep_for_long(row_keys(prompt, engine->attention_plan(300)), sequence);
  }
};

TEST_CASE("a text is saved page by page and is there with the last one") {
  Unsaved s;
  for (int page = 0; page < 5; ++page) {
    CHECK(saved_files(s.folder.path).empty());
    CHECK(s.cache.save_page());
  }
  CHECK(saved_files(s.folder.path).size() == 1);
  CHECK_FALSE(s.cache.save_page());
  CHECK_FALSE(s.cache.disk_problem().has_value());
}

TEST_CASE("a text whose pages are needed elsewhere while it is saved is given up") {
  Unsaved s;
  CHECK(s.cache.save_page());
  s.cache.evict(s.engine->pool().n_pages());
  CHECK(s.engine->pool().used_pages() == 0);
  CHECK(s.cache.save_page());
  CHECK_FALSE(s.cache.save_page());
  CHECK(fs::is_empty(s.folder.path));
  CHECK_FALSE(s.cache.disk_problem().has_value());
}

TEST_CASE("texts are saved while others are answered, in a twentieth of the time") {
  const TempFolder folder;
  const auto engine = Engine::load(small_engine_options());
  // Time passes by being asked for: a step asks several times, a page that is saved once.
  double seconds = 0;
  SchedulerOptions options = with_disk(folder.path);
  options.own_thread = false;
  options.clock = [&seconds] {
    return std::chrono::steady_clock::time_point(std::chrono::milliseconds(static_cast<int64_t>(1000 * ++seconds)));
  };
  {
    Scheduler scheduler(*engine, options);
    RequestHandle text = submit(scheduler, request_for(random_prompt(300, 1), 1));
    RequestHandle other = submit(scheduler, request_for(random_prompt(10, 2), 400));
    const auto go_on = [&](RequestHandle& handle) {
      scheduler.work([] {});
      while (handle.next(std::chrono::seconds(0))) {
      }
    };
    while (!text.done()) go_on(text);
    const double begin = seconds;
    while (saved_files(folder.path).empty() && !other.done()) go_on(other);
    CHECK_FALSE(other.done());
    CHECK(seconds - begin >= 4 / 0.05);  // five pages, the first of them at once
    CHECK(seconds - begin <= 5 / 0.05 + 30);
    other.cancel();
    scheduler.shutdown(std::chrono::seconds(60));
  }
  check_pool_empty(*engine);
}
