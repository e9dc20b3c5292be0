// fathom logits: the raw logits of a prompt, for comparing engines and quantizations.
#include <algorithm>
#include <memory>

#include "core/error.h"
#include "io/output_file.h"
#include "io/safetensors.h"
#include "main/answer.h"
#include "main/signals.h"

namespace fathom {
namespace {

struct Options {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  std::string ids, positions = "all", out;
  std::optional<std::string> prompt;
};

/// Increasing or not, as asked; each in [0, n_tokens).
std::vector<int32_t> wanted_positions(const std::string& text, int32_t n_tokens) {
  std::vector<int32_t> positions;
  if (text == "all") {
    for (int32_t pos = 0; pos < n_tokens; ++pos) positions.push_back(pos);
  } else if (text == "last") {
    positions.push_back(n_tokens - 1);
  } else {
    positions = parse_ids(text, "--positions", "all or last");
    for (const int32_t pos : positions) {
      if (pos < 0 || pos >= n_tokens)
        throw Error(ErrorCode::kUsage, "--positions: outside the prompt; expected 0 to " +
                                           std::to_string(n_tokens - 1) + ", got " + std::to_string(pos));
    }
  }
  return positions;
}

int run(const Options& options) {
  const Console console = options.common.console();
  if (options.ids.empty() == !options.prompt.has_value())
    throw Error(ErrorCode::kUsage,
                "logits: expected one of --ids and --prompt, got " + std::string(options.prompt ? "both" : "neither"));
  check_output_path(options.out, "--out");
  std::vector<int32_t> ids;
  if (!options.prompt) ids = parse_ids(options.ids, "--ids");
  const std::unique_ptr<Engine> engine = load_engine(options.model, options.engine, options.common, console);
  if (options.prompt) ids = encode_raw(*engine, *options.prompt);
  const int32_t n_tokens = static_cast<int32_t>(ids.size());
  if (n_tokens == 0) throw Error(ErrorCode::kUsage, "logits: the prompt is empty; expected at least one token");
  if (n_tokens > engine->context()) {
    throw Error(ErrorCode::kRuntime, "logits: the prompt is longer than the context; expected at most " +
                                         std::to_string(engine->context()) + " tokens, got " +
                                         std::to_string(n_tokens) + "; try a larger --ctx");
  }
  const std::vector<int32_t> positions = wanted_positions(options.positions, n_tokens);

  // A step's logits for all its tokens take T * W floats: where some are wanted, T is kept to 32 MiB of them.
  const int64_t width = engine->info().vocab_size;
  const int64_t most_outputs =
      std::max<int64_t>(1, (int64_t{32} << 20) / (width * static_cast<int64_t>(sizeof(float))));
  std::vector<float> logits(positions.size() * static_cast<size_t>(width));
  ProgressLine progress(console, "reading the prompt:", "tokens");
  Sequence sequence(engine->pool());
  for (int64_t at = 0; at < n_tokens;) {
    if (interrupted()) throw Error(ErrorCode::kInterrupted, "interrupted");
    progress.update(static_cast<uint64_t>(at), static_cast<uint64_t>(n_tokens));
    int64_t n = std::min<int64_t>(engine->chunk_tokens(), n_tokens - at);
    auto wanted_in = [&](int64_t end) {
      return std::any_of(positions.begin(), positions.end(), [&](int32_t pos) { return pos >= at && pos < end; });
    };
    const bool is_wanted = wanted_in(at + n);
    const bool only_last = is_wanted && !wanted_in(at + n - 1);
    if (is_wanted && !only_last) n = std::min(n, most_outputs);
    const StepPart part{&sequence, std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                        only_last   ? Outputs::kLast
                        : is_wanted ? Outputs::kAll
                                    : Outputs::kNone};
    if (engine->step({&part, 1}) == StepStatus::kNoPages)
      throw Error(ErrorCode::kRuntime, "logits: no page left in the cache");
    for (size_t i = 0; i < positions.size(); ++i) {
      if (positions[i] < at || positions[i] >= at + n) continue;
      const std::span<const float> row = engine->logits(only_last ? 0 : positions[i] - at);
      std::copy(row.begin(), row.end(), logits.begin() + static_cast<ptrdiff_t>(i) * width);
    }
    at += n;
  }
  progress.clear();
  const int64_t n_positions = static_cast<int64_t>(positions.size());
  write_safetensors(options.out,
                    {{"ids", SafetensorsType::kI32, {n_tokens}, ids.data()},
                     {"positions", SafetensorsType::kI32, {n_positions}, positions.data()},
                     {"logits", SafetensorsType::kF32, {n_positions, width}, logits.data()}},
                    {{"model", engine->info().path},
                     {"backend", engine->backend_description()},
                     {"system_fingerprint", system_fingerprint(*engine, options.engine)}});
  return 0;
}

}  // namespace

Command add_logits(CLI::App& root) {
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app = root.add_subcommand("logits", "Raw logits of a prompt, for comparing engines and quantizations");
  o.model.declare(*app);
  app->add_option("--ids", o.ids, "Token ids, taken as they are")->type_name("1,2,3");
  app->add_option("-p,--prompt", o.prompt,
                  "Text as it is, special tokens spelled in it included; BOS added as the file says")
      ->type_name("TEXT");
  app->add_option("--positions", o.positions, "Which positions (default: all)")->type_name("all|last|I,J");
  app->add_option("-o,--out", o.out, "File to write: ids I32 [T], positions I32 [P], logits F32 [P, W]")
      ->required()
      ->type_name("OUT.safetensors");
  o.engine.declare(*app);
  o.common.declare(*app);
  return {app, [options] { return run(*options); }};
}

}  // namespace fathom
