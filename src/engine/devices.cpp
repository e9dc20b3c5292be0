#include "engine/devices.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "split/split_backend.h"

namespace fathom {

bool has_nvidia_device() {
  std::error_code ignored;
  return std::filesystem::exists("/dev/nvidiactl", ignored);
}

ChosenBackend choose_backend(const EngineOptions& options, bool streams_experts) {
  auto cpu = [&](std::string note) {
    if (options.isa == "auto" && cpu_isa_names().front() == "reference") {
      note +=
          (note.empty() ? "" : "; ") + std::string("no vector kernels for this processor: the plain ones run, slowly");
    }
    return ChosenBackend{make_cpu_backend({options.n_threads, options.isa, streams_experts}), std::move(note), false};
  };
  if (options.backend == "cpu" || (options.backend == "auto" && options.isa != "auto")) return cpu("");
  const bool is_wanted = options.backend == "cuda";
  const CudaDevices found = find_cuda_devices();
  if (found.devices.empty()) {
    if (!is_wanted)
      return cpu(has_nvidia_device() ? "runs on the CPU: the NVIDIA device is of no use, as " + found.why_none : "");
    throw Error(ErrorCode::kUsage,
                "--backend: cuda is not available; expected cpu, as " + found.why_none + "; try --backend auto");
  }
  const auto n_devices = static_cast<int>(found.devices.size());
  if (options.device < 0 || options.device >= n_devices) {
    throw Error(ErrorCode::kUsage, "--device: no such device; expected 0 to " + std::to_string(n_devices - 1) +
                                       ", got " + std::to_string(options.device) + "; try fathom doctor");
  }
  try {
    return {options.estimate_only ? make_cuda_estimate(options.device) : make_cuda_backend(options.device), "",
            !is_wanted};
  } catch (const Error& error) {
    if (is_wanted) throw;
    return cpu(std::string("runs on the CPU: ") + error.what());
  }
}

std::vector<GatedFfnWeights> last_experts(const deepseek::Weights& weights, int64_t n_layers) {
  std::vector<GatedFfnWeights> all;
  for (const deepseek::BlockWeights& layer : weights.layers) {
    if (layer.is_moe()) all.push_back(layer.moe.experts);
  }
  if (weights.mtp && weights.mtp->block.is_moe()) all.push_back(weights.mtp->block.moe.experts);
  return {all.end() - std::min(std::ssize(all), static_cast<ptrdiff_t>(n_layers)), all.end()};
}

std::set<const std::byte*> stacks_of(std::span<const GatedFfnWeights> experts) {
  std::set<const std::byte*> stacks;
  for (const GatedFfnWeights& w : experts) stacks.insert({w.gate.data, w.up.data, w.down.data});
  return stacks;
}

int64_t stream_from(const deepseek::Model& model, const EngineOptions& options, const Backend& backend) {
  if (!backend.can_stream_experts() || model.config.n_experts == 0 || options.host_expert_layers.value_or(0) == 0)
    return 0;
  const int64_t from =
      options.stream_experts_from.value_or(default_stream_from(model.config.n_experts, model.config.router.n_used));
  return from == 0 ? 0 : std::max(from, kFewestStreamedTokens);
}

std::unique_ptr<Backend> keep_experts_on_host(std::unique_ptr<Backend> device, const deepseek::Model& model,
                                              const EngineOptions& options, bool streams_experts) {
  const std::vector<GatedFfnWeights> experts = last_experts(model.weights, options.host_expert_layers.value_or(0));
  if (experts.empty() || device->shares_host_memory()) return device;
  HostExperts gates;
  for (const GatedFfnWeights& w : experts) gates.insert(w.gate.data);
  const SplitOptions split{stream_from(model, options, *device), options.expert_cache_bytes};
  return make_split_backend(std::move(device), make_cpu_backend({options.n_threads, options.isa, streams_experts}),
                            std::move(gates), split);
}

int64_t default_chunk_tokens(const deepseek::Model& model, const EngineOptions& options, const Backend& backend) {
  if (stream_from(model, options, backend) == 0) return kDefaultChunkTokens;
  return std::max(kDefaultChunkTokens,
                  kStreamedChunks * default_stream_from(model.config.n_experts, model.config.router.n_used));
}

}  // namespace fathom
