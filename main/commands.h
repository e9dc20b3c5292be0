// The subcommands: each declares its options on `root` and returns what main() runs once they are read.
#pragma once

#include <functional>

#include <CLI/CLI.hpp>

namespace fathom {

struct Command {
  CLI::App* app;
  std::function<int()> run;  ///< returns the exit code; throws Error
};

Command add_run(CLI::App& root);
Command add_chat(CLI::App& root);
Command add_inspect(CLI::App& root);
Command add_tokenize(CLI::App& root);
Command add_detokenize(CLI::App& root);
Command add_render(CLI::App& root);
Command add_parse(CLI::App& root);
Command add_logits(CLI::App& root);
Command add_perplexity(CLI::App& root);
Command add_bench(CLI::App& root);
Command add_fit(CLI::App& root);
Command add_convert(CLI::App& root);
Command add_quantize(CLI::App& root);
Command add_imatrix(CLI::App& root);
Command add_prune(CLI::App& root);
Command add_doctor(CLI::App& root);
Command add_serve(CLI::App& root);

}  // namespace fathom
