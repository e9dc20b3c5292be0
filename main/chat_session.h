// A conversation as chat keeps it: what was said, how it is to be answered, and both in a file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "text/chat_message.h"
#include "text/chat_parser.h"

namespace fathom {

/// What can be changed while chatting.
struct ChatSettings {
  SamplingParams sampling;
  int64_t max_tokens = 0;      ///< 0: until the model or the context ends it
  std::string think = "auto";  ///< one of kThinkChoices
  bool show_thinking = true;
  std::vector<std::string> stop;

  /// `name` as on the command line, without dashes: "temp". Throws Error{kUsage} for unknown names and bad values.
  void set(const std::string& name, const std::string& value, int64_t vocab_size);
  std::string describe() const;
};

/// The turns. A question without an answer stands last only while it is being answered.
class ChatSession {
 public:
  std::string system;  ///< empty: none

  const std::vector<ChatMessage>& turns() const { return turns_; }
  bool empty() const { return turns_.empty(); }
  void ask(std::string text);
  void answer(const ParsedChat& parsed);
  void clear() { turns_.clear(); }
  /// Takes back the last question and its answer; the question, or nothing if there is none.
  std::optional<std::string> undo();
  /// System message and turns, as the chat formats take them.
  std::vector<ChatMessage> messages() const;

  /// {"fathom_session": 1, "model": .., "messages": [..]}: the messages are those of the OpenAI API.
  std::string to_json(const std::string& model) const;
  /// Also takes a bare list of messages. Throws Error{kUsage} naming the field.
  static ChatSession from_json(std::string_view json, const std::string& where);
  /// Whole or not at all, mode 0600. Throws Error{kRuntime}.
  void save(const std::string& path, const std::string& model) const;
  /// Throws Error{kModel} if the file cannot be read or is no session.
  static ChatSession load(const std::string& path);

 private:
  std::vector<ChatMessage> turns_;
};

/// Token ids of growing conversations, so that what the model wrote keeps the tokens it wrote: text encoded anew can be
/// cut into other tokens, and then the cache would not fit.
class PromptMemory {
 public:
  /// Ids of `parts`: where they begin with the last prompt and answer as remembered, those ids and the rest encoded.
  std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts) const;
  /// After an answer to `parts`, whose ids were `prompt`.
  void remember(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts, std::vector<int32_t> prompt,
                const Generation& generation);

 private:
  std::string text_;  // of ids_, markers spelled
  std::vector<int32_t> ids_;
};

}  // namespace fathom
