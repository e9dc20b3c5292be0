// fathom fit: where everything would live, in bytes, and how fast that could be. Maps the file, reads its header,
// computes nothing.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

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

struct Estimate {
  bool on_device = false;
  Share host, device;
  uint64_t recent_bytes = 0;  ///< of the cache: rows that only a prompt in progress needs
  std::optional<uint64_t> available_bytes, host_available_bytes;
  double read_gb_s = 0, host_gb_s = 0;
  double upload_gb_s = 0;                  ///< to the device
  double host_bytes_per_token = 0;         ///< of the weights of a token, those that the host reads beside a device
  double weight_bytes_per_token = 0;       ///< all of them
  double empty_tok_s = 0, full_tok_s = 0;  ///< bounds of decoding with an empty and with a full context

  const Share& used() const { return on_device ? device : host; }
  bool fits() const { return !available_bytes || used().total() <= *available_bytes; }
  bool experts_fit() const { return !host_available_bytes || host.total() <= *host_available_bytes; }
  bool has_host_experts() const { return on_device && host.weights > 0; }
};

/// A decoded token reads its weights and the cache once: memory bandwidth bounds its speed.
double decode_bound(const Engine& engine, const Estimate& e, int64_t depth) {
  const StepCost cost = engine.cost(1, 1, depth);
  return 1e9 / ((cost.weight_bytes - e.host_bytes_per_token + cost.cache_bytes) / e.read_gb_s +
                e.host_bytes_per_token / e.host_gb_s);
}

Estimate estimate(Engine& engine, int device, int n_threads) {
  Estimate e;
  e.on_device = engine.on_device();
  e.recent_bytes = engine.pool().layout().recent_bytes(engine.chunk_tokens());
  const uint64_t cache = engine.pool().capacity_bytes() + e.recent_bytes;
  e.host_available_bytes = available_memory_bytes();
  if (e.on_device) {
    e.device.weights = engine.device_weight_bytes();
    e.device.cache = cache;
    e.device.activations = engine.device_bytes() - e.device.weights - cache;
    e.host.weights = engine.host_expert_bytes();
    e.available_bytes = free_device_bytes(device);
    const CudaFigures figures = measure_cuda_device(device);
    e.read_gb_s = figures.read_gb_s;
    e.upload_gb_s = figures.upload_gb_s;
    e.host_bytes_per_token = engine.host_bytes_per_token();
  } else {
    e.host = {engine.model_bytes(), engine.info().copied_bytes, cache, engine.planned_activation_bytes()};
    e.available_bytes = e.host_available_bytes;
  }
  if (!e.on_device) e.read_gb_s = measure_machine(n_threads).read_gb_s;
  e.host_gb_s = e.has_host_experts() ? measure_machine(n_threads).read_gb_s : e.read_gb_s;
  e.weight_bytes_per_token = engine.cost(1, 1, 0).weight_bytes;
  e.empty_tok_s = decode_bound(engine, e, 0);
  e.full_tok_s = decode_bound(engine, e, engine.context() - 1);
  return e;
}

nlohmann::ordered_json to_json(const Engine& engine, const Estimate& e) {
  return {{"model", engine.info().path},
          {"ctx", engine.context()},
          {"cache_type", cache_type_name(engine)},
          {"backend", engine.backend_description()},
          {"host", e.host.json()},
          {"device", e.device.json()},
          {"available_bytes",
           e.available_bytes ? nlohmann::ordered_json(*e.available_bytes) : nlohmann::ordered_json(nullptr)},
          {"fits", e.fits()},
          {"predicted",
           {{"read_gb_s", e.read_gb_s},
            {"weight_bytes_per_token", e.weight_bytes_per_token},
            {"decode_tok_s_at_most", e.empty_tok_s},
            {"decode_tok_s_at_most_full", e.full_tok_s}}}};
}

std::string where_weights_live(const Estimate& e) {
  if (e.has_host_experts())
    return "on the device, " + human_bytes(e.host.weights) + " of experts in host memory" +
           (e.experts_fit() ? "" : " (which has " + human_bytes(*e.host_available_bytes) + " available)");
  if (e.on_device) return "on the device; of the host's memory only what reading the file takes";
  if (e.host.copied > 0)
    return "in host memory, " + human_bytes(e.host.copied) + " of it put together, the rest mapped";
  return "in host memory, mapped from the file";
}

std::string verdict(const Estimate& e) {
  if (e.fits()) return ": it fits";
  return e.on_device ? ": it does not fit; try --backend cpu, a smaller --ctx or a smaller type"
                     : ": it does not fit, weights would come from the disk again and again";
}

/// Where prompts bring experts through the device: a chunk brings all of them, however few of its tokens each one has.
std::string prompts_line(const Engine& engine, const Estimate& e) {
  const int64_t chunk = std::min(engine.chunk_tokens(), engine.context() - 1), from = engine.streams_experts_from();
  if (!e.on_device || from == 0 || chunk < from) return "";
  return "prompts       at most " +
         fixed(static_cast<double>(chunk) * e.upload_gb_s * 1e9 / static_cast<double>(e.host.weights), 1) +
         " tok/s in chunks of " + std::to_string(chunk) + ", for each of which " + human_bytes(e.host.weights) +
         " of experts pass through the device at " + fixed(e.upload_gb_s, 1) +
         " GB/s; the host computes steps of fewer than " + std::to_string(from) + " tokens\n";
}

std::string to_text(Engine& engine, const Estimate& e) {
  const Share& used = e.used();
  std::string text = "weights       " + human_bytes(used.weights) + " " + where_weights_live(e) + "\n";
  text += "cache         " + human_bytes(used.cache) + " for " + std::to_string(engine.context()) + " tokens as " +
          cache_type_name(engine);
  if (e.recent_bytes > 0)
    text += ", with " + human_bytes(e.recent_bytes) + " of rows that only a prompt in progress needs (" +
            human_bytes(engine.pool().layout().recent_bytes(1)) + " more for each further sequence)";
  text += "\nactivations   " + human_bytes(used.activations) + " for a chunk of " +
          std::to_string(engine.chunk_tokens()) + " tokens" + (e.on_device ? ", with what kernels work in" : "");
  text += "\ntotal         " + human_bytes(used.total()) + " of " +
          (e.available_bytes ? human_bytes(*e.available_bytes) + " available" : "memory nobody can tell") +
          (e.on_device ? " on " + engine.backend_description() : "") + verdict(e);
  text += "\nspeed         at most " + fixed(e.empty_tok_s, 1) + " tok/s, " + fixed(e.full_tok_s, 1) +
          " with a full context: " + human_bytes(static_cast<uint64_t>(e.weight_bytes_per_token)) +
          " of weights a token, memory reads " + fixed(e.read_gb_s, 1) + " GB/s";
  if (e.host_bytes_per_token > 0)
    text += ", " + human_bytes(static_cast<uint64_t>(e.host_bytes_per_token)) + " of them from the host's at " +
            fixed(e.host_gb_s, 1) + " GB/s";
  return text + "\n" + prompts_line(engine, e);
}

int run(const Options& options) {
  const Console console = options.common.console();
  // Where it would live is counted, not tried: a file is mapped, a folder's headers are read, nothing goes to a device.
  EngineFlags flags = options.engine;
  flags.estimate_only = true;
  const std::unique_ptr<Engine> engine = load_engine(options.model, flags, options.common, console);
  const int n_threads = options.common.threads == 0 ? usable_physical_cores() : options.common.threads;
  const Estimate e = estimate(*engine, flags.device, n_threads);
  write_answer(options.json ? to_json(*engine, e).dump() + "\n" : to_text(*engine, e));
  return e.fits() ? 0 : static_cast<int>(ErrorCode::kNoMemory);
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
