// fathom perplexity: how well a model predicts a text, and how far it is from a reference run.
#include "engine/perplexity.h"

#include <memory>

#include "core/error.h"
#include "io/output_file.h"
#include "main/answer.h"
#include "main/input.h"
#include "main/reading.h"
#include "main/signals.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  std::string file, save_logits, kl;
  std::optional<int64_t> chunks;
  bool special = false, json = false;
};

nlohmann::ordered_json to_json(const PerplexityReport& report) {
  nlohmann::ordered_json json = {{"perplexity", report.perplexity},
                                 {"error", report.error},
                                 {"ctx", report.window},
                                 {"windows", report.n_windows},
                                 {"tokens", report.n_scored}};
  if (report.comparison) {
    const PerplexityReport::Comparison& c = *report.comparison;
    json["reference_perplexity"] = c.reference_perplexity;
    json["kl"] = {{"mean", c.kl.mean},     {"error", c.kl.standard_error},
                  {"median", c.kl.median}, {"p90", c.kl.p90},
                  {"p95", c.kl.p95},       {"p99", c.kl.p99},
                  {"max", c.kl.max}};
    json["same_top"] = c.same_top;
    json["same_top_error"] = c.same_top_error;
    json["rms_probability_change"] = c.rms_probability_change;
  }
  return json;
}

std::string to_text(const PerplexityReport& report) {
  std::string text = "perplexity        " + fixed(report.perplexity, 4) + " +- " + fixed(report.error, 4) + "  (" +
                     std::to_string(report.n_scored) + " tokens in " + std::to_string(report.n_windows) +
                     (report.n_windows == 1 ? " window of " : " windows of ") + std::to_string(report.window) + ")\n";
  if (report.comparison) {
    const PerplexityReport::Comparison& c = *report.comparison;
    text += "reference         " + fixed(c.reference_perplexity, 4) + "\n";
    text += "KL divergence     " + fixed(c.kl.mean, 6) + " +- " + fixed(c.kl.standard_error, 6) + "  median " +
            fixed(c.kl.median, 6) + ", 90% " + fixed(c.kl.p90, 6) + ", 95% " + fixed(c.kl.p95, 6) + ", 99% " +
            fixed(c.kl.p99, 6) + ", max " + fixed(c.kl.max, 6) + "\n";
    text += "same top token    " + fixed(c.same_top * 100, 2) + "% +- " + fixed(c.same_top_error * 100, 2) + "%\n";
    text += "probability RMS   " + fixed(c.rms_probability_change * 100, 3) + "%\n";
  }
  return text;
}

int run(const Options& options) {
  const Console console = options.common.console();
  if (!options.save_logits.empty()) check_output_path(options.save_logits, "--save-logits");
  const std::string text = read_input(options.file, "--file");
  const std::unique_ptr<Engine> engine = load_engine(options.model, options.engine, options.common, console);
  const std::vector<int32_t> tokens = text_ids(engine->tokenizer(), text, options.special);
  PerplexityOptions measure;
  measure.window = reading_window(options.engine, *engine, tokens.size());
  measure.max_windows = options.chunks;
  measure.save_logits = options.save_logits;
  measure.reference = options.kl;
  ProgressLine progress(console, "perplexity:", "tokens");
  const PerplexityReport report = measure_perplexity(
      *engine, tokens, measure, [&](uint64_t done, uint64_t total) { progress.update(done, total); },
      [] { return interrupted(); });
  progress.clear();
  write_answer(options.json ? to_json(report).dump() + "\n" : to_text(report));
  return 0;
}

}  // namespace

Command add_perplexity(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app =
      root.add_subcommand("perplexity", "How well a model predicts a text; KL divergence from a reference run");
  o.model.declare(*app);
  app->add_option("-f,--file", o.file, "The text; - for standard input")->required()->type_name("FILE");
  app->add_option("--chunks", o.chunks, "Score the first N windows only")->check(at_least(1))->type_name("N");
  declare_special(*app, o.special);
  app->add_option("--save-logits", o.save_logits,
                  "Save the scored logits (4 bytes for each scored token and vocabulary entry)")
      ->type_name("FILE");
  app->add_option("--kl", o.kl, "Compare with logits saved from the reference model")->type_name("FILE");
  app->add_flag("--json", o.json, "As one JSON object");
  o.engine.declare(*app, "-c,--ctx", kWindowHelp);
  o.common.declare(*app);
  app->footer(
      "The text is cut into windows of --ctx tokens (default: 512); each is evaluated by itself, with BOS first, and "
      "the predictions in its second half are scored.");
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
