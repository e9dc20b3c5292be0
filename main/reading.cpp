#include "main/reading.h"

#include <algorithm>

#include "core/error.h"
#include "engine/text_windows.h"
#include "main/input.h"
#include "main/signals.h"

namespace fathom {
namespace {

constexpr int64_t kUsualWindow = 512;

/// On the CPU whatever else there is: the rows must be readable between operations. With the MTP block, which is
/// measured like any other.
EngineFlags for_reading(EngineFlags flags, const std::string& command) {
  if (flags.backend == "cuda")
    throw Error(ErrorCode::kUsage, command + ": runs on the CPU only; expected --backend cpu, got cuda");
  flags.backend = "cpu";
  flags.draft = "auto";
  return flags;
}

}  // namespace

void ReadingFlags::declare(CLI::App& app, bool with_model) {
  if (with_model) model.declare(app);
  app.add_option("-f,--file", file, "The text; - for standard input")->required()->type_name("FILE");
  app.add_option("--chunks", chunks, "Read the first N windows only")->check(at_least(1))->type_name("N");
  declare_special(app, special);
  engine.declare(app, "-c,--ctx", kWindowHelp);
  common.declare(app);
}

void declare_special(CLI::App& app, bool& special) {
  app.add_flag("--special", special,
               "Control tokens spelled in the text become their ids, as for a text in the chat format (default: only "
               "markers such as <think> do)");
}

std::vector<int32_t> text_ids(const Tokenizer& tokenizer, const std::string& text, bool special) {
  return special ? tokenizer.encode(text, true) : tokenizer.encode_document(text);
}

int64_t reading_window(const EngineFlags& flags, const Engine& engine, size_t n_tokens) {
  return flags.context.value_or(
      std::min({kUsualWindow, engine.context(), std::max(static_cast<int64_t>(n_tokens), kMinWindow)}));
}

ReadingRun::ReadingRun(const ReadingFlags& flags, const std::string& command, const Console& console)
    : line_(console, command + ":", "tokens") {
  const std::string text = read_input(flags.file, "--file");
  engine = load_engine(flags.model, for_reading(flags.engine, command), flags.common, console);
  tokens = text_ids(engine->tokenizer(), text, flags.special);
  options.window = reading_window(flags.engine, *engine, tokens.size());
  options.max_windows = flags.chunks;
}

Progress ReadingRun::progress() {
  return [this](uint64_t done, uint64_t total) { line_.update(done, total); };
}

std::function<bool()> ReadingRun::stop() {
  return [] { return interrupted(); };
}

}  // namespace fathom
