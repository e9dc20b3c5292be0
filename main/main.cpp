// The program: reads the command line, runs one subcommand, turns what went wrong into one line and an exit code.
#include <unistd.h>
#ifdef __GLIBC__  // known after any system header
#include <malloc.h>
#endif

#include <array>
#include <cstdio>
#include <new>
#include <span>
#include <string>

#include <CLI/CLI.hpp>

#include "build_info.h"
#include "core/error.h"
#include "core/printable.h"
#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "io/mapped_file.h"
#include "main/command_line.h"
#include "main/commands.h"
#include "main/signals.h"
#include "main/terminal.h"

namespace fathom {
namespace {

constexpr int kExitOutputClosed = 141;

std::string version_text() {
  std::string isas;
  for (const std::string& name : cpu_isa_names()) isas += " " + name;
  const std::string cuda = cuda_architectures();
  return std::string("fathom ") + FATHOM_VERSION + "\ncommit:   " + FATHOM_COMMIT + "\ncompiler: " +
#ifdef __clang__
         "clang " + __clang_version__ +
#else
         "g++ " + __VERSION__ +
#endif
         "\nISA:     " + isas + "\nCUDA:     " + (cuda.empty() ? "no" : "kernels for " + cuda) + "\n";
}

int fail(int exit_code, const std::string& message) {
  std::string line = "fathom: " + message;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  std::fprintf(stderr, "%s\n", visible_text(line).c_str());
  return exit_code;
}

/// Every step makes and frees some hundred KiB: the allocator is to keep them, not to give them back and ask again.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, 16 << 20);
  mallopt(M_TOP_PAD, 1 << 20);
#endif
}

void warn_of_misspelt_variables(std::span<const Command> commands, const CLI::App& active) {
  const CLI::Option* level = active.get_option("--log-level");
  if (level->count() > 0 && level->as<std::string>() == "quiet") return;
  for (const std::string& name : unknown_variables(commands)) {
    Console(LogLevel::kWarn, ColorMode::kAuto, false)
        .warn("the variable " + printable(name, 100) +
              " belongs to no option; --help of a command lists those that do");
  }
}

int run_program(int argc, char** argv) {
  keep_freed_memory();
  CLI::App root("Runs the language models of the DeepSeek family on this machine.", "fathom");
  root.option_defaults()->multi_option_policy(
      CLI::MultiOptionPolicy::TakeLast);  // so that an alias's options can be overruled
  bool wants_version = false;
  root.add_flag("--version", wants_version, "Version, commit, compiler, instruction sets, CUDA");
  root.footer(
      "fathom COMMAND --help tells a command's options. Each long option can be set by a variable: --max-tokens by "
      "FATHOM_MAX_TOKENS.");
  const std::array commands = {add_run(root),        add_chat(root),    add_inspect(root), add_tokenize(root),
                               add_detokenize(root), add_render(root),  add_parse(root),   add_logits(root),
                               add_perplexity(root), add_bench(root),   add_fit(root),     add_convert(root),
                               add_quantize(root),   add_imatrix(root), add_prune(root),   add_doctor(root),
                               add_serve(root)};
  name_environment_variables(commands);
  try {
    root.parse(argc, argv);
    if (wants_version) {
      write_answer(version_text());
      return 0;
    }
    for (const Command& command : commands) {
      if (!command.app->parsed()) continue;
      const CLI::Option* config = command.app->get_option("--config");
      if (config->count() > 0) apply_config_file(config->as<std::string>(), commands, *command.app);
      warn_of_misspelt_variables(commands, *command.app);
      return command.run();
    }
  } catch (const CLI::CallForHelp&) {
    write_answer(root.help());
    return 0;
  } catch (const CLI::ParseError& error) {
    return fail(static_cast<int>(ErrorCode::kUsage), usage_message(error, root));
  }
  return fail(static_cast<int>(ErrorCode::kUsage),
              "no command; expected one as in fathom run \"Once upon a time\"; try fathom --help");
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  install_signal_handlers();
  install_mapped_file_guard();
  try {
    return run_program(argc, argv);
  } catch (const OutputClosed&) {
    return kExitOutputClosed;
  } catch (const Error& error) {
    // Who pressed Ctrl-C knows why it ended.
    return error.code() == ErrorCode::kInterrupted ? static_cast<int>(error.code())
                                                   : fail(static_cast<int>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(static_cast<int>(ErrorCode::kNoMemory),
                "memory: the system gave no more; try a smaller --ctx or model");
  } catch (const BugError& error) {
    return fail(static_cast<int>(ErrorCode::kRuntime), std::string("a bug in fathom itself: ") + error.what());
  } catch (const std::exception& error) {
    return fail(static_cast<int>(ErrorCode::kRuntime), error.what());
  }
}
