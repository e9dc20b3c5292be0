// The pen that the chat formats write with, and what the two families of formats share. Used by chat_format only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat_generation.h"
#include "text/chat_message.h"
#include "text/prompt_part.h"

namespace fathom {

/// Collects parts; neighbouring plain texts become one part, so that the tokenizer sees them whole.
class PromptWriter {
 public:
  void marker(std::string_view token) { parts_.push_back({std::string(token), true}); }

  PromptWriter& plain(std::string_view text) {
    if (text.empty()) return *this;
    if (parts_.empty() || parts_.back().special) parts_.push_back({});
    parts_.back().text += text;
    return *this;
  }

  /// A text of the program's own, in which the spelled markers are meant. `dsml_token`: whether ｜DSML｜ is a token.
  void own(std::string_view text, bool dsml_token);

  std::vector<PromptPart> take() { return std::move(parts_); }

 private:
  std::vector<PromptPart> parts_;
};

/// One conversation to be written.
struct ChatRendering {
  ChatGeneration generation;
  const std::vector<ChatMessage>& messages;
  const std::vector<ChatTool>& tools;
  const ChatOptions& options;

  bool thinking() const { return options.thinking.value_or(reasons_by_default(generation)); }
  bool open_answer() const { return options.add_generation_prompt && !messages.back().prefix; }
};

/// V2.5 to V3.1 with their <｜tool▁...｜> markers, and V2 without.
void write_marker_format(PromptWriter& out, const ChatRendering& chat);
/// V3.2 and V4, whose calls are ｜DSML｜ elements.
void write_dsml_format(PromptWriter& out, const ChatRendering& chat);

/// "\n\n" and the answer schema, if there is one.
void write_response_format(PromptWriter& out, const ChatOptions& options);

/// Puts the tool results of one round into the order of their calls; those with unknown ids come last, in their own
/// order.
void sort_by_call(std::vector<const ChatMessage*>& results, const std::vector<ChatToolCall>& calls);

}  // namespace fathom
