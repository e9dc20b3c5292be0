// From a file or folder to an engine: who computes, and what stays in which memory.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "convert/load_checkpoint.h"
#include "core/error.h"
#include "core/host_memory.h"
#include "engine/devices.h"
#include "engine/engine.h"
#include "engine/weight_reader.h"
#include "io/gguf.h"

namespace fathom {
namespace {

/// A model and who brings it into memory.
struct MappedModel {
  explicit MappedModel(GgufModel m) : model(std::move(m)) {}

  const GgufModel model;
  std::optional<WeightReader> reader;
};

}  // namespace

std::unique_ptr<Engine> Engine::load(const EngineOptions& options) {
  std::error_code ignored;
  if (std::filesystem::is_directory(options.model_path, ignored)) {
    LoadedCheckpoint c = options.estimate_only
                             ? describe_checkpoint(options.model_path)
                             : load_checkpoint(options.model_path, options.n_threads, available_memory_bytes());
    return from_source({std::move(c.metadata), std::move(c.tensors), options.model_path, c.size_bytes, c.copied_bytes,
                        std::move(c.owner), std::move(c.check_intact)},
                       options);
  }
  auto file = std::make_shared<MappedModel>(GgufModel::open(options.model_path));
  const GgufModel& model = file->model;
  // Pages that are read from now on come in units of 2 MiB where the file system can: reading weights is a sixth
  // faster.
  for (const GgufFile& shard : model.files()) shard.file->advise(MappedFile::Access::kHugePages);
  ModelSource source = {
      model.metadata(), model.tensors(), model.path(), model.size_bytes(), 0, file, [&model] { model.check_intact(); }};
  if (!options.estimate_only) {
    ReadingPlan plan = plan_reading(model, available_memory_bytes());
    source.streams_experts = plan.streams_experts;
    file->reader.emplace(std::move(plan));
  }
  return from_source(std::move(source), options);
}

int64_t Engine::least_host_layers(const ModelSource& source, const EngineOptions& options) {
  EngineOptions counted = options;
  counted.estimate_only = true;
  counted.on_load = {};
  ModelSource bare = source;
  bare.metadata = {};  // but for the tokenizer, which takes longer to prepare than everything else
  for (const auto& [key, value] : source.metadata.all()) {
    if (!key.starts_with("tokenizer.")) bare.metadata.set(key, value);
  }
  const std::string arch = *source.metadata.text("general.architecture");
  const int64_t trained = source.metadata.integer(arch + ".context_length").value_or(kDefaultContextLimit);
  if (!counted.context) counted.context = std::min(kDefaultContextLimit, trained);
  const auto fits = [&](int64_t n_layers) {
    counted.host_expert_layers = n_layers;
    ChosenBackend device = choose_backend(counted, source.streams_experts);
    const uint64_t free = device.backend->free_bytes().value_or(UINT64_MAX);
    try {
      return on_backend(bare, counted, std::move(device))->device_bytes() + kDeviceReserveBytes <= free;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kNoMemory) throw;
      return false;
    }
  };
  try {
    int64_t too_few = -1, enough = source.metadata.integer(arch + ".block_count").value_or(0) + 1;
    if (fits(0)) return 0;
    for (too_few = 0; too_few + 1 < enough;) {
      const int64_t middle = (too_few + enough) / 2;
      (fits(middle) ? enough : too_few) = middle;
    }
    return enough;
  } catch (const Error&) {
    return 0;  // what is wrong is said when it is loaded in earnest
  }
}

std::unique_ptr<Engine> Engine::from_source(ModelSource source, const EngineOptions& asked) {
  EngineOptions options = asked;
  ChosenBackend chosen = choose_backend(options, source.streams_experts);
  if (!options.host_expert_layers && !chosen.backend->shares_host_memory())
    options.host_expert_layers = least_host_layers(source, options);
  if (!chosen.may_fall_back) return on_backend(std::move(source), options, std::move(chosen));
  // The device was not asked for by name: what it cannot take runs on the CPU.
  try {
    return on_backend(source, options, std::move(chosen));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNoMemory && error.code() != ErrorCode::kModel && error.code() != ErrorCode::kDevice)
      throw;
    EngineOptions on_cpu = options;
    on_cpu.backend = "cpu";
    ChosenBackend cpu = choose_backend(on_cpu, source.streams_experts);
    cpu.note = std::string("runs on the CPU: ") + error.what();
    return on_backend(std::move(source), on_cpu, std::move(cpu));
  }
}

}  // namespace fathom
