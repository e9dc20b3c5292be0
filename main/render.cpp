// fathom render: the exact prompt that a chat format makes of messages.
#include <memory>

#include "core/error.h"
#include "main/chat_format_option.h"
#include "main/input.h"
#include "text/chat_text.h"

namespace fathom {

Command add_render(CLI::App& root) {
  struct Options {
    CommonOptions common;
    ChatFormatOption format;
    std::string messages, think = "auto";
  };
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("render", "The exact prompt that the chat format makes of messages");
  options->format.declare(*app);
  app->add_option("--messages", options->messages,
                  "JSON list of messages, or {\"messages\", \"tools\", \"options\"}; - for standard input")
      ->type_name("FILE");
  app->add_option("--think", options->think, "Reasoning (default: auto, as the messages or the format say)")
      ->check(one_of(kThinkChoices));
  options->common.declare(*app);
  return {app, [options] {
            const ChatGeneration generation = options->format.choose(options->common.console());
            if (options->messages.empty())
              throw Error(ErrorCode::kUsage, "render: no messages; expected --messages FILE; try fathom render --help");
            const std::string json = read_input(options->messages, "--messages");
            AnswerOutput out;
            out.write(render_json(generation, json, [&](ChatOptions& o) { set_thinking(options->think, o); }));
            out.finish();
            return 0;
          }};
}

}  // namespace fathom
