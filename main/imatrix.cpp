// fathom imatrix: which columns of each weight matter, measured on a text, for fathom quantize and llama-quantize.
#include <filesystem>
#include <memory>

#include "core/error.h"
#include "engine/importance.h"
#include "io/output_file.h"
#include "main/reading.h"

namespace fathom {

Command add_imatrix(CLI::App& root) {
  struct Options {
    ReadingFlags reading;
    std::string out;
  };
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app =
      root.add_subcommand("imatrix", "Measure on a text which columns of each weight matter, for quantize --imatrix");
  app->add_option("-o,--out", o.out, "File to write, of llama.cpp's GGUF form")->required()->type_name("FILE");
  o.reading.declare(*app);
  app->footer(
      "The text is read in windows of --ctx tokens (default: 512), each by itself. Experts are measured on the tokens "
      "that choose them, W_UK and W_UV head by head, the MTP block like any other. Best on a model in f16, bf16 "
      "or q8_0 and on text like what it will meet.");
  return {app, [options] {
            const Options& o = *options;
            check_output_path(o.out, "--out");
            const Console console = o.reading.common.console();
            ReadingRun run(o.reading, "imatrix", console);
            const ImportanceReport report =
                measure_importance(*run.engine, run.tokens, run.options, run.progress(), run.stop());
            run.finish();
            write_importance_matrix(
                o.out, report.tensors,
                {std::filesystem::path(o.reading.file).filename().string(), report.n_windows, run.options.window});
            int64_t n_unmet = 0;
            for (const auto& [name, squares] : report.tensors) {
              for (const int64_t count : squares.counts) n_unmet += count == 0 ? 1 : 0;
            }
            console.note("wrote " + o.out + ": " + std::to_string(report.tensors.size()) + " tensors, " +
                         std::to_string(report.n_windows) + " windows of " + std::to_string(run.options.window) +
                         " tokens, perplexity " + fixed(report.perplexity, 4));
            if (n_unmet > 0)
              console.warn(std::to_string(n_unmet) +
                           " expert matrices met no token: their columns will count alike; more text helps");
            return 0;
          }};
}

}  // namespace fathom
