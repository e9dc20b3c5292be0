#include "engine/chat_choice.h"

#include "text/chat_choice.h"

namespace fathom {

ChatGeneration choose_chat_generation(const Metadata& metadata, const Vocab& vocab) {
  auto text = [&](const char* key) {
    const std::string* value = metadata.text(key);
    return value ? std::string_view(*value) : std::string_view();
  };
  ChatEvidence evidence;
  evidence.chat_template = text("tokenizer.chat_template");
  evidence.has_token = [&](std::string_view spelled) { return vocab.find(spelled).has_value(); };
  evidence.vocab_size = static_cast<size_t>(vocab.size());
  evidence.architecture = text("general.architecture");
  evidence.model_name = text("general.name");
  return choose_format(evidence).generation;
}

}  // namespace fathom
