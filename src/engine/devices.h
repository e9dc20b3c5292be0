// Which device runs a model: the one place that knows them by name.
#pragma once

#include <cstddef>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/cuda_backend.h"
#include "deepseek/deepseek.h"
#include "engine/engine.h"

namespace fathom {

/// Of a device's memory, left for the driver, recorded steps and whatever else uses the device.
constexpr uint64_t kDeviceReserveBytes = uint64_t{256} << 20;

struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  std::string note;            ///< what the user should be told about the choice, or nothing
  bool may_fall_back = false;  ///< a device nobody asked for: a model it refuses may run on the CPU
};

/// Whether the system has an NVIDIA device, usable by this program or not.
bool has_nvidia_device();

/// options.backend and what is there: "cpu"; "cuda" is the device; "auto" is the device if there is a usable one and no
/// CPU kernels are asked for, else the CPU, with a note if there is one that cannot be used. Throws Error{kUsage} for a
/// device number that does not exist and for "cuda" without a usable device. `streams_experts` as in ModelSource.
ChosenBackend choose_backend(const EngineOptions& options, bool streams_experts);

/// `device` with the routed experts of the last options.host_expert_layers mixtures (all, if there are fewer; the MTP
/// block counts as the last) left to the CPU; `device` itself for 0 and where the host's memory is its own. The weights
/// are still in host memory.
std::unique_ptr<Backend> keep_experts_on_host(std::unique_ptr<Backend> device, const deepseek::Model& model,
                                              const EngineOptions& options, bool streams_experts);
/// Tokens of a step from which on these experts pass through the device; 0: never.
int64_t stream_from(const deepseek::Model& model, const EngineOptions& options, const Backend& backend);
/// EngineOptions::chunk_tokens where nothing is asked for.
int64_t default_chunk_tokens(const deepseek::Model& model, const EngineOptions& options, const Backend& backend);

/// Those layers' experts.
std::vector<GatedFfnWeights> last_experts(const deepseek::Weights& weights, int64_t n_layers);
/// First bytes of their stacks. For place_weights.
std::set<const std::byte*> stacks_of(std::span<const GatedFfnWeights> experts);

}  // namespace fathom
