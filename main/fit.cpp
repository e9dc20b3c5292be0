// fathom fit: where everything would live, in bytes, and how fast that could be. Maps the file, reads its header,
// computes nothing.
#include <memory>

#include "core/error.h"
#include "core/host_memory.h"
#include "core/threads.h"
#include "cpu/machine.h"
#include "cuda/cuda_backend.h"
#include "main/answer.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  bool json = false;
};

/// Bytes in one kind of memory.
struct Share {
  uint64_t weights = 0, copied = 0, cache = 0, activations = 0;
  uint64_t total() const { return weights + cache + activations; }
  nlohmann::ordered_json json() const {
    return {{"weights_bytes", weights},
            {"weights_copied_bytes", copied},
            {"cache_bytes", cache},
            {"activation_bytes", activations},
            {"total_bytes", total()}};
  }
};

std::optional<uint64_t> free_device_bytes(int device) {
  for (const CudaDevice& d : find_cuda_devices(true).devices) {
    if (d.index == device) return d.free_bytes;
  }
  return std::nullopt;
}

int run(const Options& options) {
  const Console console = options.common.console();
  // Where it would live is counted, not tried: a file is mapped, a folder's headers are read, nothing goes to a device.
  EngineFlags flags = options.engine;
  flags.estimate_only = true;
  const std::unique_ptr<Engine> engine = load_engine(options.model, flags, options.common, console);
  const bool on_device = engine->on_device();
  const uint64_t recent = engine->pool().layout().recent_bytes(engine->chunk_tokens()),
                 cache = engine->pool().capacity_bytes() + recent;
  Share host, device;
  if (on_device) {
    device.weights = engine->device_weight_bytes();
    device.cache = cache;
    device.activations = engine->device_bytes() - device.weights - cache;
    host.weights = engine->host_expert_bytes();
  } else {
    host = {engine->model_bytes(), engine->info().copied_bytes, cache, engine->planned_activation_bytes()};
  }
  const Share& used = on_device ? device : host;
  const std::optional<uint64_t> available = on_device ? free_device_bytes(flags.device) : available_memory_bytes();
  const bool fits = !available || used.total() <= *available;
  const std::optional<uint64_t> host_available = available_memory_bytes();
  const bool host_fits = !on_device || !host_available || host.total() <= *host_available;
  // A decoded token reads its weights and the cache once: memory bandwidth bounds its speed.
  const int n_threads = options.common.threads == 0 ? usable_physical_cores() : options.common.threads;
  const CudaFigures figures = on_device ? measure_cuda_device(flags.device) : CudaFigures();
  const double read_gb_s = on_device ? figures.read_gb_s : measure_machine(n_threads).read_gb_s;
  const double host_gb_s = host.weights > 0 && on_device ? measure_machine(n_threads).read_gb_s : read_gb_s;
  const double host_share = on_device ? engine->host_bytes_per_token() : 0;
  auto bound = [&](int64_t depth) {
    const StepCost cost = engine->cost(1, 1, depth);
    return 1e9 / ((cost.weight_bytes - host_share + cost.cache_bytes) / read_gb_s + host_share / host_gb_s);
  };
  const StepCost first = engine->cost(1, 1, 0);
  const int64_t full = engine->context() - 1;
  if (options.json) {
    const nlohmann::ordered_json json = {
        {"model", engine->info().path},
        {"ctx", engine->context()},
        {"cache_type", cache_type_name(*engine)},
        {"backend", engine->backend_description()},
        {"host", host.json()},
        {"device", device.json()},
        {"available_bytes", available ? nlohmann::ordered_json(*available) : nlohmann::ordered_json(nullptr)},
        {"fits", fits},
        {"predicted",
         {{"read_gb_s", read_gb_s},
          {"weight_bytes_per_token", first.weight_bytes},
          {"decode_tok_s_at_most", bound(0)},
          {"decode_tok_s_at_most_full", bound(full)}}}};
    write_answer(json.dump() + "\n");
  } else {
    const std::string where =
        host.weights > 0 && on_device
            ? "on the device, " + human_bytes(host.weights) + " of experts in host memory" +
                  (host_fits ? "" : " (which has " + human_bytes(*host_available) + " available)")
        : on_device       ? "on the device; of the host's memory only what reading the file takes"
        : host.copied > 0 ? "in host memory, " + human_bytes(host.copied) + " of it put together, the rest mapped"
                          : "in host memory, mapped from the file";
    const std::string no = on_device ? ": it does not fit; try --backend cpu, a smaller --ctx or a smaller type\n"
                                     : ": it does not fit, weights would come from the disk again and again\n";
    write_answer("weights       " + human_bytes(used.weights) + " " + where + "\ncache         " + human_bytes(cache) +
                 " for " + std::to_string(engine->context()) + " tokens as " + cache_type_name(*engine) +
                 (recent == 0
                      ? std::string()
                      : ", with " + human_bytes(recent) + " of rows that only a prompt in progress needs (" +
                            human_bytes(engine->pool().layout().recent_bytes(1)) + " more for each further sequence)") +
                 "\nactivations   " + human_bytes(used.activations) + " for a chunk of " +
                 std::to_string(engine->chunk_tokens()) + " tokens" + (on_device ? ", with what kernels work in" : "") +
                 "\ntotal         " + human_bytes(used.total()) + " of " +
                 (available ? human_bytes(*available) + " available" : std::string("memory nobody can tell")) +
                 (on_device ? " on " + engine->backend_description() : std::string()) + (fits ? ": it fits\n" : no) +
                 "speed         at most " + fixed(bound(0), 1) + " tok/s, " + fixed(bound(full), 1) +
                 " with a full context: " + human_bytes(static_cast<uint64_t>(first.weight_bytes)) +
                 " of weights a token, memory reads " + fixed(read_gb_s, 1) + " GB/s" +
                 (host_share > 0 ? ", " + human_bytes(static_cast<uint64_t>(host_share)) +
                                       " of them from the host's at " + fixed(host_gb_s, 1) + " GB/s"
                                 : std::string()) +
                 "\n");
    // A chunk of a prompt brings all of these experts, however few of its tokens each one has.
    const int64_t chunk = std::min(engine->chunk_tokens(), full);
    if (on_device && engine->streams_experts_from() > 0 && chunk >= engine->streams_experts_from())
      write_answer(
          "prompts       at most " +
          fixed(static_cast<double>(chunk) * figures.upload_gb_s * 1e9 / static_cast<double>(host.weights), 1) +
          " tok/s in chunks of " + std::to_string(chunk) + ", for each of which " + human_bytes(host.weights) +
          " of experts pass through the device at " + fixed(figures.upload_gb_s, 1) +
          " GB/s; the host computes steps of fewer than " + std::to_string(engine->streams_experts_from()) +
          " tokens\n");
  }
  return fits ? 0 : static_cast<int>(ErrorCode::kNoMemory);
}

}  // namespace

Command add_fit(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app = root.add_subcommand(
      "fit", "Where everything would live, in bytes, and the predicted speed; exit code 4 if it does not fit");
  o.model.declare(*app);
  app->add_flag("--json", o.json, "As one JSON object");
  o.engine.declare(*app);
  o.common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
