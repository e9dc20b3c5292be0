// fathom convert: a Hugging Face checkpoint into a GGUF file.
#include <memory>

#include "main/write_report.h"

namespace fathom {

Command add_convert(CLI::App& root) {
  struct Options {
    WriteFlags flags;
    ConvertOptions convert;
    bool mtp = false, no_mtp = false, no_split_kv_b = false;
  };
  auto options = std::make_shared<Options>();
  Options& o = *options;
  CLI::App* app =
      root.add_subcommand("convert", "Make a GGUF file of a Hugging Face checkpoint (V1, V2, V3, R1, V3.1, V3.2, V4)");
  app->add_option("folder", o.convert.folder, "Folder with config.json, tokenizer.json and safetensors files")
      ->required()
      ->type_name("DIR");
  app->add_option("-o,--out", o.convert.out, "File to write; an interrupted run goes on where it stopped")
      ->type_name("OUT.gguf");
  app->add_option("--name", o.convert.name, "Name of the model (default: the folder's)")->type_name("TEXT");
  CLI::Option* mtp = app->add_flag(
      "--mtp", o.mtp, "Keep the MTP layer (default: of V3 and V3.2; llama.cpp refuses V4 files that have it)");
  app->add_flag("--no-mtp", o.no_mtp, "Leave out the MTP layer")->excludes(mtp);
  app->add_flag("--no-split-kv-b", o.no_split_kv_b, "Keep kv_b whole, for programs older than April 2025");
  o.flags.declare(*app, o.convert);
  return {app, [options] {
            options->convert.mtp = options->mtp      ? MtpChoice::kKeep
                                   : options->no_mtp ? MtpChoice::kLeaveOut
                                                     : MtpChoice::kAuto;
            options->convert.splits_kv_b = !options->no_split_kv_b;
            return write_and_report(options->flags, options->convert,
                                    "converting:", [options] { return convert_checkpoint(options->convert); });
          }};
}

}  // namespace fathom
