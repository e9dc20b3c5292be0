// fathom fit: where everything would live, in bytes, and how fast that could be. Maps the file, reads its header,
// computes nothing.
#include <memory>

#include "core/error.h"
#include "core/host_memory.h"
#include "core/threads.h"
#include "cpu/machine.h"
#include "main/answer.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  bool json = false;
};

int run(const Options& options) {
  const Console console = options.common.console();
  // Where it would live is counted, not tried: a file is mapped, a folder's headers are read, nothing goes to a device.
  EngineFlags on_host = options.engine;
  on_host.backend = "cpu";
  on_host.estimate_only = true;
  const std::unique_ptr<Engine> engine = load_engine(options.model, on_host, options.common, console);
  const uint64_t weights = engine->model_bytes(), copied = engine->info().copied_bytes,
                 recent = engine->pool().layout().recent_bytes(engine->chunk_tokens()),
                 cache = engine->pool().capacity_bytes() + recent, activations = engine->planned_activation_bytes();
  const uint64_t total = weights + cache + activations;
  const std::optional<uint64_t> available = available_memory_bytes();
  const bool fits = !available || total <= *available;
  // A decoded token reads its weights and the cache once: memory bandwidth bounds its speed.
  const double read_gb_s =
      measure_machine(options.common.threads == 0 ? usable_physical_cores() : options.common.threads).read_gb_s;
  auto bound = [&](int64_t depth) {
    const StepCost cost = engine->cost(1, 1, depth);
    return read_gb_s * 1e9 / (cost.weight_bytes + cost.cache_bytes);
  };
  const StepCost first = engine->cost(1, 1, 0);
  const int64_t full = engine->context() - 1;
  if (options.json) {
    const nlohmann::ordered_json nowhere = {{"weights_bytes", 0},
                                            {"weights_copied_bytes", 0},
                                            {"cache_bytes", 0},
                                            {"activation_bytes", 0},
                                            {"total_bytes", 0}};
    const nlohmann::ordered_json json = {
        {"model", engine->info().path},
        {"ctx", engine->context()},
        {"cache_type", cache_type_name(*engine)},
        {"host",
         {{"weights_bytes", weights},
          {"weights_copied_bytes", copied},
          {"cache_bytes", cache},
          {"activation_bytes", activations},
          {"total_bytes", total}}},
        {"device", nowhere},
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
        copied == 0 ? "mapped from the file" : human_bytes(copied) + " of it put together, the rest mapped";
    write_answer(
        "weights       " + human_bytes(weights) + " in host memory, " + where + "\ncache         " +
        human_bytes(cache) + " for " + std::to_string(engine->context()) + " tokens as " + cache_type_name(*engine) +
        (recent == 0 ? std::string()
                     : ", with " + human_bytes(recent) + " of rows that only a prompt in progress needs (" +
                           human_bytes(engine->pool().layout().recent_bytes(1)) + " more for each further sequence)") +
        "\nactivations   " + human_bytes(activations) + " for a chunk of " + std::to_string(engine->chunk_tokens()) +
        " tokens\ntotal         " + human_bytes(total) + " of " +
        (available ? human_bytes(*available) + " available" : std::string("memory nobody can tell")) +
        (fits ? ": it fits\n" : ": it does not fit, weights would come from the disk again and again\n") +
        "speed         at most " + fixed(bound(0), 1) + " tok/s, " + fixed(bound(full), 1) +
        " with a full context: " + human_bytes(static_cast<uint64_t>(first.weight_bytes)) +
        " of weights a token, memory reads " + fixed(read_gb_s, 1) + " GB/s\n");
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
