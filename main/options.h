// Options that several subcommands share, and what they mean.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "core/metadata.h"
#include "engine/draft_policy.h"
#include "engine/engine.h"
#include "main/commands.h"
#include "main/option_checks.h"
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
  static constexpr std::string_view kContextHelp =
      "Tokens of context (default: what model and memory allow, at most 32768)";

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

  /// `context_help` says what --ctx counts and its default.
  void declare(CLI::App& app, std::string_view context_flags = "-c,--ctx",
               std::string_view context_help = kContextHelp);
  /// For commands that answer: the chat format, and drafting, which is off in others.
  void declare_answering(CLI::App& app);
  DraftMode draft_mode() const;
  EngineOptions engine_options(const std::string& model_path, const CommonOptions& common) const;
};

/// Loads; tells on a terminal that it does and what runs then.
std::unique_ptr<Engine> load_engine(const ModelOption& model, const EngineFlags& flags, const CommonOptions& common,
                                    const Console& console);

/// Tells of flags that are for a device, where none is used.
void warn_of_unused(const EngineFlags& flags, const Engine& engine, const Console& console);

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

/// "1,2,3": whole numbers, commas or white space between them. Throws Error{kUsage} naming `where`, with `try_this`.
std::vector<int32_t> parse_ids(std::string_view text, const std::string& where,
                               const std::string& try_this = "fathom tokenize");

/// Metadata of a GGUF file, complete or header only, or of a Hugging Face folder's tokenizer. Throws Error{kModel}.
Metadata read_model_metadata(const std::string& path);

}  // namespace fathom
