// fathom inspect: what a model file holds, from its header alone.
#include <filesystem>
#include <memory>

#include "convert/load_checkpoint.h"
#include "io/inspect.h"
#include "main/options.h"

namespace fathom {
namespace {

/// A download that is not complete is told like a file that was cut. Folders of other families are shown as they are.
void check_complete(const std::string& path, const InspectReport& report) {
  std::error_code ignored;
  const bool is_of_family = report.architecture.empty() || report.architecture.starts_with("deepseek");
  if (std::filesystem::is_directory(path, ignored) && is_of_family) describe_checkpoint(path);
}

}  // namespace

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
            const std::string path = options->model.choose(options->common.console());
            const InspectReport report = inspect_model(path);
            check_complete(path, report);
            write_answer(options->json ? inspect_json_text(report, options->tensors)
                                       : inspect_text(report, options->tensors));
            return 0;
          }};
}

}  // namespace fathom
