#include "engine/weight_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "engine_fixture.h"

namespace fathom {
namespace {

using namespace testing;
namespace fs = std::filesystem;

/// The shards of a model in a folder of their own.
struct Copy {
  fs::path folder;
  std::string path;

  Copy() {
    std::string name = (fs::current_path() / "weight_reader_test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
    const fs::path first = small_engine_options().model_path;
    for (const auto& entry : fs::directory_iterator(first.parent_path())) {
      if (entry.path().filename().string().starts_with("v2lite-q4_k_m-mla-0"))
        fs::copy_file(entry.path(), folder / entry.path().filename());
    }
    path = folder / first.filename();
  }
  ~Copy() { fs::remove_all(folder); }

  /// Opened, and none of its pages in memory where the file system allows that (tmpfs does not).
  GgufModel open_cold() const {
    GgufModel model = GgufModel::open(path);
    for (const GgufFile& shard : model.files()) {
      const int fd = ::open(shard.file->path().c_str(), O_RDONLY);
      REQUIRE(fd >= 0);
      ::fsync(fd);
      shard.file->advise(MappedFile::Access::kDontNeed);
      ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      ::close(fd);
    }
    return model;
  }
};

uint64_t tensor_bytes(const GgufModel& model, bool with_experts) {
  uint64_t sum = 0;
  for (const auto& [name, tensor] : model.tensors()) {
    if (with_experts || name.find("_exps.") == std::string::npos) sum += tensor.size_bytes();
  }
  return sum;
}

/// Bytes of tensors in shards that are not in memory.
uint64_t cold_bytes(const GgufModel& model, bool with_experts) {
  uint64_t sum = 0;
  for (const GgufFile& shard : model.files()) {
    if (shard.file->resident_fraction(0, shard.file->size_bytes()) >= 0.999) continue;
    for (const GgufTensorInfo& tensor : shard.tensors) {
      if (with_experts || tensor.name.find("_exps.") == std::string::npos) sum += tensor.size_bytes;
    }
  }
  return sum;
}

TEST_CASE("a model that fits in memory is read whole") {
  const Copy copy;
  const GgufModel model = copy.open_cold();
  const uint64_t cold = cold_bytes(model, true);
  ReadingPlan plan = plan_reading(model, model.size_bytes() * 2);
  CHECK_FALSE(plan.streams_experts);
  CHECK(plan.size_bytes == cold);
  CHECK_FALSE(plan_reading(model, std::nullopt).streams_experts);
  WeightReader(std::move(plan)).finish();
  for (const GgufFile& shard : model.files()) CHECK(shard.file->resident_fraction(0, shard.file->size_bytes()) == 1.0);
  CHECK(plan_reading(model, model.size_bytes() * 2).size_bytes == 0);  // what is there is not read again
}

TEST_CASE("of a model larger than memory all but the experts is read") {
  const Copy copy;
  const GgufModel model = copy.open_cold();
  REQUIRE(tensor_bytes(model, false) < tensor_bytes(model, true));
  const uint64_t cold = cold_bytes(model, false);
  const ReadingPlan plan = plan_reading(model, model.size_bytes() / 2);
  CHECK(plan.streams_experts);
  CHECK(plan.size_bytes == cold);
  CHECK(plan_reading(model, model.size_bytes()).streams_experts);  // something is left for the rest of the program
}

TEST_CASE("a reader that is no longer wanted ends") {
  const Copy copy;
  const GgufModel model = copy.open_cold();
  for (int i = 0; i < 20; ++i) WeightReader(plan_reading(model, std::nullopt));
}

TEST_CASE("experts that are asked for ahead give the same logits") {
  const EngineOptions options = small_engine_options();
  const auto file = std::make_shared<const GgufModel>(GgufModel::open(options.model_path));
  auto logits_of = [&](bool streams, int n_threads) {
    ModelSource source = {file->metadata(), file->tensors(), file->path(), file->size_bytes(), 0, file, {}};
    source.streams_experts = streams;
    EngineOptions o = options;
    o.backend = "cpu";
    o.n_threads = n_threads;
    const std::unique_ptr<Engine> engine = Engine::from_source(std::move(source), o);
    CHECK(engine->note().empty() == !streams);
    Sequence sequence(engine->pool());
    const std::vector<int32_t> prompt = random_prompt(70, 3);
    StepPart part{&sequence, prompt, Outputs::kAll};
    REQUIRE(engine->step({&part, 1}) == StepStatus::kDone);
    std::vector<float> all;
    for (int64_t i = 0; i < 70; ++i) {
      const std::span<const float> row = engine->logits(i);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  };
  for (const int n_threads : {1, 3}) CHECK(logits_of(true, n_threads) == logits_of(false, n_threads));
}

}  // namespace
}  // namespace fathom
