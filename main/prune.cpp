// fathom prune: a smaller model of the experts that do most on a text.
#include <filesystem>
#include <memory>

#include "convert/prune.h"
#include "deepseek/config.h"
#include "main/reading.h"
#include "main/write_report.h"

namespace fathom {
namespace {

struct Options {
  ReadingFlags reading;
  PruneOptions prune;
  std::string split_max_size;
  bool json = false;
};

/// Measures the experts and leaves in `prune` what they and the router ask for.
void measure(const ReadingFlags& reading, PruneOptions& prune, const Console& console) {
  ReadingRun run(reading, "prune", console);
  const deepseek::Config& config = run.engine->config();
  const RouterParams& router = config.router;
  prune.router = {config.n_experts, router.n_used, router.n_groups, router.n_groups_used,
                  router.group_rank == GroupRank::kSumOfTwoBest && router.n_groups > 1 ? 2 : 1};
  if (config.n_experts > 0)
    choose_experts(std::vector<double>(static_cast<size_t>(config.n_experts)), prune.router,
                   prune.n_keep);  // a wrong count is told at once
  if (config.rope.is_yarn) prune.numbers["rope.scaling.yarn_log_multiplier"] = config.rope.log_multiplier;
  const ExpertReport report = measure_experts(*run.engine, run.tokens, run.options, run.progress(), run.stop());
  run.finish();
  prune.saliency = report.saliency;
  prune.dataset = std::filesystem::path(reading.file).filename().string();
  int64_t n_unmet = 0;
  for (const auto& [name, counts] : report.n_chosen) {
    for (const int64_t count : counts) n_unmet += count == 0 ? 1 : 0;
  }
  console.note("measured on " + std::to_string(report.n_windows) + " windows of " + std::to_string(run.options.window) +
               " tokens, perplexity before " + fixed(report.perplexity, 4));
  if (n_unmet > 0)
    console.warn(std::to_string(n_unmet) + " experts met no token and count as useless; more text tells better");
}

}  // namespace

Command add_prune(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app =
      root.add_subcommand("prune", "Drop the routed experts that do least on a text: a smaller model, and a lossy one");
  app->add_option("in", o.prune.in, "GGUF file or first shard")->required()->type_name("IN.gguf");
  app->add_option("out", o.prune.out, "File to write")->type_name("OUT.gguf");
  app->add_option("--keep", o.prune.n_keep,
                  "Experts to keep in each layer; where experts come in groups, as many of each")
      ->required()
      ->check(at_least(1))
      ->type_name("N");
  declare_split(*app, o.split_max_size);
  app->add_flag("--dry-run", o.prune.is_dry_run, "Measure and tell sizes, write nothing");
  app->add_flag("--json", o.json, "Report as one JSON object");
  o.reading.declare(*app, /*with_model=*/false);
  app->footer(
      "The text is read in windows of --ctx tokens (default: 512). An expert's saliency is the mean, over the tokens "
      "that choose it, of its router weight times the norm of its "
      "output (REAP, arXiv:2510.13999). Compare with fathom perplexity --kl.");
  return {app, [options] {
            Options& o = *options;
            o.prune.type = "copy";
            check_prune_paths(o.prune);
            o.reading.model.path = o.prune.in;
            measure(o.reading, o.prune, o.reading.common.console());
            return write_and_report({o.reading.common, o.split_max_size, o.json}, o.prune,
                                    "pruning:", [&o] { return prune_file(o.prune); });
          }};
}

}  // namespace fathom
