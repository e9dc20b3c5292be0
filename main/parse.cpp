// fathom parse: what a model wrote, split into reasoning, answer and tool calls.
#include <memory>

#include "core/error.h"
#include "main/chat_format_option.h"
#include "main/input.h"
#include "main/lines.h"
#include "text/chat_text.h"

namespace fathom {

Command add_parse(CLI::App& root) {
  struct Options {
    CommonOptions common;
    ChatFormatOption format;
    std::optional<std::string> file;
    bool lines = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("parse", "Model output to reasoning, answer and tool calls, as JSON");
  app->add_option("file", options->file,
                  "{\"text\", \"options\": {\"starts_in_reasoning\", \"tools\", \"finish\"}, \"cut\": [piece "
                  "lengths]}; - for standard input")
      ->type_name("FILE|-");
  options->format.declare(*app);
  app->add_flag("--lines", options->lines, "One such object a line in, one result a line out");
  options->common.declare(*app);
  return {app, [options] {
            const ChatGeneration generation = options->format.choose(options->common.console());
            const std::string path = options->file.value_or("-");
            if (options->lines) {
              transform_lines(
                  "parse",
                  [&](const std::string& line, const std::string& where) {
                    try {
                      return parse_json(generation, line);
                    } catch (const Error& error) {
                      throw Error(error.code(), where + ": " + error.what());
                    }
                  },
                  path);
              return 0;
            }
            write_answer(
                parse_json(generation, options->file ? read_input(path, "parse") : text_argument({}, "parse")) + "\n");
            return 0;
          }};
}

}  // namespace fathom
