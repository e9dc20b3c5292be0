// fathom inspect: what a model file holds, from its header alone.
#include <memory>

#include "io/inspect.h"
#include "main/options.h"

namespace fathom {

Command add_inspect(CLI::App& root) {
  struct Options {
    CommonOptions common;
    ModelOption model;
    bool tensors = false, json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand(
      "inspect", "What a model file holds: architecture, configuration, types, tokenizer, template");
  options->model.declare(*app);
  app->add_flag("--tensors", options->tensors, "List every tensor");
  app->add_flag("--json", options->json, "As one JSON object");
  options->common.declare(*app);
  return {app, [options] {
            const InspectReport report = inspect_model(options->model.choose(options->common.console()));
            write_answer(options->json ? inspect_json_text(report, options->tensors)
                                       : inspect_text(report, options->tensors));
            return 0;
          }};
}

}  // namespace fathom
