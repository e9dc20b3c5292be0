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

std::optional<bool> thinking_of(const std::string& think) {
  return think == "auto" ? std::nullopt : std::optional<bool>(think == "on");
}

}  // namespace fathom
