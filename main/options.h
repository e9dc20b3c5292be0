// Options that several subcommands share, what they mean, and how they are read from flags, environment and
// configuration file.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "core/metadata.h"
#include "engine/draft_policy.h"
#include "engine/engine.h"
#include "main/commands.h"
#include "main/terminal.h"
#include "sampling/sampler.h"

namespace fathom {

/// What every subcommand takes.
struct CommonOptions {
  int threads = 0;
  std::optional<uint64_t> seed;
  std::string log_level = "info";
  std::string color = "auto";
  bool progress = false;
  std::string config;

  void declare(CLI::App& app);
  Console console() const;
};

/// Which model; for subcommands that read its header only.
struct ModelOption {
  std::string path;

  void declare(CLI::App& app);
  /// The path given, or the shipped model, which a note tells. Throws Error{kModel} if that is missing too.
  std::string choose(const Console& console) const;
};

/// How the model is run.
struct EngineFlags {
  std::optional<int64_t> context;
  std::string cache_type = "auto";
  std::string attention = "auto";
  std::string backend = "auto";
  int device = 0;
  std::string cpu_moe = "auto";
  std::string stream_moe = "auto";
  double moe_cache = 0;  ///< GiB
  std::string isa = "auto";
  std::string chat_format = "auto";
  int64_t batch = 0;
  std::string draft = "off";
  bool estimate_only = false;  ///< of EngineOptions; no option

  void declare(CLI::App& app, std::string_view context_flags = "-c,--ctx");
  /// For commands that answer; drafting is off in others.
  void declare_draft(CLI::App& app);
  DraftMode draft_mode() const;
  EngineOptions engine_options(const std::string& model_path, const CommonOptions& common) const;
};

/// Loads; tells on a terminal that it does and what runs then.
std::unique_ptr<Engine> load_engine(const ModelOption& model, const EngineFlags& flags, const CommonOptions& common,
                                    const Console& console);

/// The type of its pages as --cache-type spells it.
std::string cache_type_name(const Engine& engine);

struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  float repeat_penalty = 1.0F, frequency_penalty = 0.0F, presence_penalty = 0.0F;
  std::vector<std::string> logit_bias;

  void declare(CLI::App& app);
  /// What can be refused before a model is loaded. Throws Error{kUsage}.
  void check() const;
  /// Flags first, then the model's recommendation, then fathom's defaults; a random seed if none is given.
  SamplingParams params(const Engine& engine, std::optional<uint64_t> seed) const;
};

/// Checks for CLI11 that speak as the rest of the program does.
CLI::Validator at_least(int64_t lowest);
CLI::Validator one_of(std::vector<std::string> names);

/// "1,2,3" as token ids. Throws Error{kUsage} naming `where`.
std::vector<int32_t> parse_ids(std::string_view text, const std::string& where);

/// Gives every long option of the subcommands its variable: --max-tokens is FATHOM_MAX_TOKENS.
void name_environment_variables(std::span<const Command> commands);

/// Applies `path` to the options of `active` that neither command line nor environment set. Keys before any section
/// count for the subcommands that have them, keys of a section [run] for that one. Throws Error{kUsage} for keys no
/// subcommand has, Error{kModel} for a file that cannot be read.
void apply_config_file(const std::string& path, std::span<const Command> commands, const CLI::App& active);

/// The CLI11 error as a message of the house: "run: what; expected ..".
std::string usage_message(const CLI::ParseError& error, const CLI::App& root);

/// Metadata of a GGUF file, complete or header only, or of a Hugging Face folder's tokenizer. Throws Error{kModel}.
Metadata read_model_metadata(const std::string& path);

}  // namespace fathom
