// fathom quantize: a GGUF file into one of other types.
#include <memory>

#include "main/write_report.h"

namespace fathom {

Command add_quantize(CLI::App& root) {
  struct Options {
    WriteFlags flags;
    QuantizeOptions quantize;
    bool no_mtp = false;
  };
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app = root.add_subcommand(
      "quantize", "Write a GGUF file again in other types; --type copy changes only what --tensor-type names");
  app->add_option("in", o.quantize.in, "GGUF file or first shard, best in f32, f16 or bf16")
      ->required()
      ->type_name("IN.gguf");
  app->add_option("out", o.quantize.out, "File to write; an interrupted run goes on where it stopped")
      ->type_name("OUT.gguf");
  app->add_flag("--no-mtp", o.no_mtp, "Leave out the MTP layer");
  o.flags.declare(*app, o.quantize);
  return {app, [options] {
            options->quantize.with_mtp = !options->no_mtp;
            return write_and_report(options->flags, options->quantize,
                                    "quantizing:", [options] { return quantize_file(options->quantize); });
          }};
}

}  // namespace fathom
