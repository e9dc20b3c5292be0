// What fathom imatrix and fathom prune share, and fathom perplexity in part: a model reads a text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/importance.h"
#include "main/options.h"
#include "main/terminal.h"

namespace fathom {

struct ReadingFlags {
  CommonOptions common;
  ModelOption model;
  EngineFlags engine;
  std::string file;
  std::optional<int64_t> chunks;
  bool special = false;

  /// Everything but the model's own option where `with_model` is false.
  void declare(CLI::App& app, bool with_model = true);
};

/// What --ctx is where a text is read in windows.
inline constexpr std::string_view kWindowHelp = "Tokens of a window (default: 512, or the whole of a shorter text)";
/// The window: --ctx, else the usual one as far as text and model reach.
int64_t reading_window(const EngineFlags& flags, const Engine& engine, size_t n_tokens);

/// --special, of commands that measure a text.
void declare_special(CLI::App& app, bool& special);
/// The text's ids: all added tokens spelled in it matched where `special`, else markers alone (encode_document).
std::vector<int32_t> text_ids(const Tokenizer& tokenizer, const std::string& text, bool special);

/// The model loaded and the text as tokens.
struct ReadingRun {
  ReadingRun(const ReadingFlags& flags, const std::string& command, const Console& console);

  Progress progress();
  static std::function<bool()> stop();
  void finish() { line_.clear(); }

  std::unique_ptr<Engine> engine;
  std::vector<int32_t> tokens;
  ReadingOptions options;

 private:
  ProgressLine line_;
};

}  // namespace fathom
