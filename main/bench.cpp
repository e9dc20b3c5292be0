// fathom bench: what this machine does at best, and how near a model's prefill and decode come to it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/threads.h"
#include "cpu/cpu_backend.h"
#include "cpu/machine.h"
#include "cuda/cuda_backend.h"
#include "deepseek/deepseek.h"
#include "engine/benchmark.h"
#include "engine/synthetic.h"
#include "main/answer.h"
#include "main/options.h"
#include "main/terminal.h"

namespace fathom {
namespace {

struct BenchFlags {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  SyntheticOptions shape;
  BenchOptions bench;
  bool machine_only = false, json = false, csv = false, markdown = false;
};

std::string format(const char* pattern, double a) {
  char text[64];
  std::snprintf(text, sizeof(text), pattern, a);
  return text;
}

nlohmann::ordered_json to_json(const MachineFigures& m) {
  return {{"threads", m.n_threads},       {"isa", m.isa},
          {"read_gb_s", m.read_gb_s},     {"read_one_thread_gb_s", m.read_one_gb_s},
          {"copy_gb_s", m.copy_gb_s},     {"int8_gop_s", m.int8_gop_s},
          {"f32_gflop_s", m.f32_gflop_s}, {"f32_one_thread_gflop_s", m.f32_one_gflop_s}};
}

nlohmann::ordered_json to_json(const BenchRow& r) {
  return {{"test", r.test},
          {"tokens", r.tokens},
          {"depth", r.depth},
          {"batch", r.batch},
          {"tok_s_median", r.tok_s_median},
          {"tok_s_min", r.tok_s_min},
          {"tok_s_max", r.tok_s_max},
          {"gb_s", r.gb_s},
          {"gop_s", r.gop_s},
          {"percent_of_bound", r.percent_of_bound}};
}

nlohmann::ordered_json to_json(const CudaDevice& d, const CudaFigures& f) {
  return {{"index", d.index},
          {"name", d.name},
          {"capability", d.capability},
          {"multiprocessors", d.n_multiprocessors},
          {"memory_bytes", d.memory_bytes},
          {"read_gb_s", f.read_gb_s},
          {"copy_gb_s", f.copy_gb_s},
          {"upload_gb_s", f.upload_gb_s},
          {"download_gb_s", f.download_gb_s},
          {"bf16_gop_s", f.bf16_gop_s},
          {"step_us", f.step_us}};
}

std::string device_text(const CudaDevice& d, const CudaFigures& f) {
  return "cuda " + std::to_string(d.index) + ": " + d.name + ", read " + format("%.0f", f.read_gb_s) + " GB/s, copy " +
         format("%.0f", f.copy_gb_s) + " GB/s, from the host " + format("%.1f", f.upload_gb_s) + " GB/s, to it " +
         format("%.1f", f.download_gb_s) + " GB/s, bf16 " + format("%.0f", f.bf16_gop_s / 1e3) +
         " TFLOP/s, shortest step " + format("%.1f", f.step_us) + " us";
}

std::string machine_text(const MachineFigures& m) {
  return "read " + format("%.1f", m.read_gb_s) + " GB/s (one thread " + format("%.1f", m.read_one_gb_s) + "), copy " +
         format("%.1f", m.copy_gb_s) + " GB/s, int8 " + format("%.0f", m.int8_gop_s) + " GOP/s, f32 " +
         format("%.0f", m.f32_gflop_s) + " GFLOP/s (one thread " + format("%.0f", m.f32_one_gflop_s) + "), " +
         std::to_string(m.n_threads) + " threads, " + m.isa;
}

class Table {
 public:
  explicit Table(const BenchFlags& flags) : flags_(flags) {}

  void header() const {
    if (flags_.csv)
      write_answer("test,tokens,depth,batch,tok_s_median,tok_s_min,tok_s_max,gb_s,gop_s,percent_of_bound\n");
    if (flags_.markdown)
      write_answer(
          "| test | tokens | depth | batch | tok/s | min | max | GB/s | GOP/s | % of bound "
          "|\n|---|---|---|---|---|---|---|---|---|---|\n");
    if (!flags_.csv && !flags_.markdown && !flags_.json)
      write_answer("test     tokens   depth  batch      tok/s (min .. max)            GB/s    GOP/s   % of bound\n");
  }

  void row(const BenchRow& r) const {
    char text[256];
    if (flags_.json) return;
    const char* pattern = flags_.csv        ? "%s,%lld,%lld,%lld,%.3f,%.3f,%.3f,%.3f,%.1f,%.2f\n"
                          : flags_.markdown ? "| %s | %lld | %lld | %lld | %.2f | %.2f | %.2f | %.2f | %.0f | %.1f |\n"
                                            : "%-8s %6lld  %6lld  %5lld  %9.2f (%.2f .. %.2f)  %8.2f  %7.0f  %10.1f\n";
    std::snprintf(text, sizeof(text), pattern, r.test.c_str(), static_cast<long long>(r.tokens),
                  static_cast<long long>(r.depth), static_cast<long long>(r.batch), r.tok_s_median, r.tok_s_min,
                  r.tok_s_max, r.gb_s, r.gop_s, r.percent_of_bound);
    write_answer(text);
  }

 private:
  const BenchFlags& flags_;
};

/// tok/s of the whole model from those of a part: time grows with the bytes (decode) or operations (prefill) of the
/// step.
double whole_model_tok_s(const BenchRow& r, const StepCost& part, const StepCost& whole) {
  const double ratio = r.test == "decode"
                           ? (part.weight_bytes + part.cache_bytes) / (whole.weight_bytes + whole.cache_bytes)
                           : (part.matmul_ops + part.attention_ops) / (whole.matmul_ops + whole.attention_ops);
  return r.tok_s_median * ratio;
}

int tell_of_machine(const MachineFigures& machine, bool as_json) {
  nlohmann::ordered_json json = to_json(machine);
  json["devices"] = nlohmann::ordered_json::array();
  std::string text = machine_text(machine) + "\n";
  for (const CudaDevice& device : find_cuda_devices().devices) {
    const CudaFigures figures = measure_cuda_device(device.index);
    json["devices"].push_back(to_json(device, figures));
    text += device_text(device, figures) + "\n";
  }
  write_answer(as_json ? json.dump(2) + "\n" : text);
  return 0;
}

void check_has_rows(const BenchOptions& bench) {
  const auto all_zero = [](const std::vector<int64_t>& v) {
    return std::count(v.begin(), v.end(), 0) == std::ssize(v);
  };
  if (all_zero(bench.prefill_tokens) && all_zero(bench.decode_tokens))
    throw Error(ErrorCode::kUsage, "bench: nothing to measure; expected a prefill or decode length above 0");
}

/// The model of the file, or one of random weights.
std::unique_ptr<Engine> make_engine(const BenchFlags& f, const Console& console) {
  std::unique_ptr<Engine> engine;
  if (f.shape.shape.empty()) {
    const std::string path = f.model.choose(console);
    engine = Engine::load(f.engine.engine_options(path, f.common));
  } else {
    console.detail("making random weights");
    engine = Engine::from_source(synthetic_model(f.shape), f.engine.engine_options("", f.common));
  }
  if (!engine->note().empty()) console.warn(engine->note());
  warn_of_unused(f.engine, *engine, console);
  return engine;
}

/// What bounds the speed, and how that is told.
struct Bounds {
  SpeedBounds speed;
  std::string text;
};

Bounds bounds_of(const Engine& engine, const MachineFigures& machine, int device) {
  if (!engine.on_device()) return {{machine.read_gb_s, machine.int8_gop_s}, "machine: " + machine_text(machine)};
  const CudaFigures figures = measure_cuda_device(device);
  return {{figures.read_gb_s, figures.bf16_gop_s},
          "device: " + device_text(find_cuda_devices().devices.at(static_cast<size_t>(device)), figures)};
}

/// For each row of a part of a shape what the whole would do; nothing where the whole was measured.
std::vector<double> whole_model_figures(const BenchFlags& f, const Engine& part, const std::vector<BenchRow>& rows) {
  if (f.shape.shape.empty() || !f.shape.n_layers) return {};
  SyntheticOptions all = f.shape;
  all.n_layers.reset();
  all.only_shapes = true;
  EngineOptions options = f.engine.engine_options("", f.common);
  options.backend = "cpu";  // nothing is computed
  const std::unique_ptr<Engine> whole = Engine::from_source(synthetic_model(all), options);
  std::vector<double> tok_s;
  for (const BenchRow& r : rows) {
    const int64_t each = r.test == "decode" ? 1 : r.tokens;
    tok_s.push_back(whole_model_tok_s(r, part.cost(r.batch, each, r.depth), whole->cost(r.batch, each, r.depth)));
  }
  return tok_s;
}

int run_bench(BenchFlags& f) {
  const Console console = f.common.console();
  const int n_threads = f.common.threads > 0 ? f.common.threads : usable_physical_cores();
  if (f.machine_only) return tell_of_machine(measure_machine(n_threads), f.json);
  check_has_rows(f.bench);
  if (!f.engine.context) f.engine.context = f.bench.pool_tokens();
  console.detail("measuring the machine");
  const MachineFigures machine = measure_machine(n_threads);

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<Engine> engine = make_engine(f, console);
  const double load_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  const Bounds bounds = bounds_of(*engine, machine, f.engine.device);
  if (!f.json && !f.csv) {
    console.note(bounds.text);
    console.note("model: " + engine->info().path + ", " +
                 format("%.2f", static_cast<double>(engine->info().size_bytes) / 1e9) + " GB, " +
                 engine->backend_description());
  }
  const Table table(f);
  table.header();
  const std::vector<BenchRow> rows = run_benchmark(
      *engine, f.bench, bounds.speed, [&](const BenchRow& r) { table.row(r); },
      [&](const std::string& text) { console.debug(text); });
  const std::vector<double> whole = whole_model_figures(f, *engine, rows);
  const uint64_t peak = peak_rss_bytes();
  if (f.json) {
    nlohmann::ordered_json out{{"machine", to_json(machine)},
                               {"backend", engine->backend_description()},
                               {"model", engine->info().path},
                               {"model_bytes", engine->info().size_bytes},
                               {"load_ms", load_ms},
                               {"peak_rss_bytes", peak},
                               {"device_bytes", engine->device_bytes()},
                               {"rows", nlohmann::ordered_json::array()}};
    for (size_t i = 0; i < rows.size(); ++i) {
      nlohmann::ordered_json row = to_json(rows[i]);
      if (!whole.empty()) row["whole_model_tok_s"] = whole[i];
      out["rows"].push_back(row);
    }
    write_answer(out.dump(2) + "\n");
    return 0;
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    console.note("all layers, extrapolated: " + rows[i].test + " " + std::to_string(rows[i].tokens) + " at depth " +
                 std::to_string(rows[i].depth) + ", batch " + std::to_string(rows[i].batch) + ": " +
                 format("%.2f", whole[i]) + " tok/s");
  }
  console.note("load " + format("%.0f", load_ms) + " ms, peak memory " +
               format("%.2f", static_cast<double>(peak) / 1e9) + " GB");
  return 0;
}

}  // namespace

Command add_bench(CLI::App& root) {
  auto f = std::make_shared<BenchFlags>();
  CLI::App* app =
      root.add_subcommand("bench", "Measures prefill and decode, and how near they come to what the machine can do");
  f->model.declare(*app);
  app->add_flag("--machine", f->machine_only, "Measure the machine alone: memory, integer and float peak");
  CLI::Option* shape = app->add_option("--shape", f->shape.shape, "Random weights of a released shape, in memory")
                           ->check(one_of(synthetic_shapes()))
                           ->type_name("SHAPE");
  app->add_option("--type", f->shape.type,
                  "Weight type for --shape: q4_k_m, q8_0, q6_k, iq4_xs, mxfp4, bf16 ... (default: q4_k_m)")
      ->needs(shape)
      ->type_name("TYPE");
  app->add_option("--layers", f->shape.n_layers, "Only so many layers of --shape; the whole is extrapolated")
      ->check(at_least(1))
      ->needs(shape)
      ->type_name("N");
  const auto numbers = [app](const char* names, std::vector<int64_t>& values, int64_t lowest, const char* help) {
    app->add_option(names, values, help)->delimiter(',')->check(at_least(lowest))->type_name("N,..");
  };
  numbers("-p,--prefill", f->bench.prefill_tokens, 0, "Prefill lengths; 0: none (default: 512)");
  numbers("-n,--decode", f->bench.decode_tokens, 0, "Decode lengths; 0: none (default: 64)");
  numbers("-d,--depth", f->bench.depths, 0, "Tokens already in the cache (default: 0)");
  numbers("-b,--batch-size", f->bench.batches, 1, "Sequences decoded together (default: 1)");
  app->add_option("-r,--repetitions", f->bench.repetitions, "Runs of each row (default: 5)")
      ->check(in_range(1, 1'000'000))
      ->type_name("N");
  CLI::Option* json = app->add_flag("--json", f->json, "One JSON object");
  CLI::Option* csv = app->add_flag("--csv", f->csv, "Comma-separated rows")->excludes(json);
  app->add_flag("--markdown", f->markdown, "A Markdown table")->excludes(json)->excludes(csv);
  f->engine.declare(*app, "--ctx", "Tokens of context (default: what the rows need)");
  f->common.declare(*app);
  return {app, [f] { return run_bench(*f); }};
}

}  // namespace fathom
