#include "engine/devices.h"

#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace fathom {

ChosenBackend choose_backend(const EngineOptions& options, bool streams_experts) {
  auto cpu = [&](std::string note) {
    return ChosenBackend{make_cpu_backend({options.n_threads, options.isa, streams_experts}), std::move(note), false};
  };
  if (options.backend == "cpu" || (options.backend == "auto" && options.isa != "auto")) return cpu("");
  const bool is_wanted = options.backend == "cuda";
  const CudaDevices found = find_cuda_devices();
  if (is_wanted && cuda_architectures().empty()) {
    throw Error(ErrorCode::kUsage,
                "--backend: cuda is not available; expected cpu, as " + found.why_none + "; try --backend auto");
  }
  if (found.devices.empty()) return cpu(is_wanted ? "--backend cuda: " + found.why_none + "; runs on the CPU" : "");
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

}  // namespace fathom
