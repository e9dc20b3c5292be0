#include "main/chat_format_option.h"

#include "engine/chat_choice.h"
#include "text/vocab.h"

namespace fathom {

void ChatFormatOption::declare(CLI::App& app) {
  model.declare(app);
  std::string names;
  for (const ChatGeneration generation : kChatGenerations)
    names += (names.empty() ? "" : ", ") + std::string(name_of(generation));
  app.add_option("--format", format, "The format by name instead: " + names)->type_name("GEN");
}

ChatGeneration ChatFormatOption::choose(const Console& console) const {
  if (!format.empty()) return chat_generation_from_name(format);
  const Metadata metadata = read_model_metadata(model.choose(console));
  return choose_chat_generation(metadata, Vocab(metadata));
}

void set_thinking(const std::string& think, ChatOptions& options) {
  if (think == "auto") return;
  options.thinking = think != "off";
  if (think != "on" && think != "off") options.effort = reasoning_effort_from_name(think, "--think");
}

}  // namespace fathom
