// The formats of V2 to V3.1. Sources: the chat templates in the tokenizer_config.json of each model.
#include "core/error.h"
#include "text/chat_literals.h"
#include "text/chat_prompt.h"

namespace fathom {
namespace {

using namespace chat_literals;

/// V2 has no markers: "User: " and "Assistant: " as words, system messages where they stand.
void write_v2(PromptWriter& out, const ChatRendering& chat) {
  const auto write_schema = [&] {
    if (chat.options.response_schema)
      out.plain(kResponseFormat).plain(to_chat_json(*chat.options.response_schema)).plain("\n\n");
  };
  const ChatRole first = chat.messages.front().role;
  const bool leading_system = first == ChatRole::kSystem || first == ChatRole::kDeveloper;
  if (!leading_system) write_schema();
  for (const ChatMessage& message : chat.messages) {
    switch (message.role) {
      case ChatRole::kUser: out.plain("User: ").plain(message.content).plain("\n\n"); break;
      case ChatRole::kAssistant:
        out.plain("Assistant: ").plain(message.content);
        if (!message.prefix) out.marker(kEos);
        break;
      default:
        out.plain(message.content).plain("\n\n");
        if (&message == &chat.messages.front()) write_schema();
    }
  }
  if (chat.open_answer()) out.plain("Assistant:");
}

class MarkerFormat {
 public:
  MarkerFormat(PromptWriter& out, const ChatRendering& chat)
      : out_(out),
        chat_(chat),
        generation_(chat.generation),
        fenced_(tool_syntax_of(generation_) == ToolSyntax::kFenced) {}

  void write() {
    write_system();
    for (const ChatMessage& message : chat_.messages) {
      switch (message.role) {
        case ChatRole::kUser: write_user(message); break;
        case ChatRole::kAssistant: write_assistant(message); break;
        case ChatRole::kTool: write_result(message); break;
        default: break;  // system texts stand in front
      }
    }
    write_end();
  }

 private:
  enum class After { kNothing, kUser, kAnswer, kResults };

  /// The templates up to R1 overwrite the system text with each system message; the later ones join them.
  void write_system() {
    const bool keep_last = generation_ <= ChatGeneration::kV3 || generation_ == ChatGeneration::kR1;
    const ChatMessage* last = nullptr;
    for (const ChatMessage& message : chat_.messages) {
      if (message.role != ChatRole::kSystem && message.role != ChatRole::kDeveloper) continue;
      if (!keep_last) out_.plain(last == nullptr ? "" : "\n\n").plain(message.content);
      last = &message;
    }
    if (keep_last && last != nullptr) out_.plain(last->content);
    if (!chat_.tools.empty()) {
      if (last != nullptr) out_.plain("\n\n");
      write_tools();
    }
    write_response_format(out_, chat_.options);
  }

  void write_tools() {
    out_.own(kToolsHeadV31, false);
    bool first = true;
    for (const ChatTool& tool : chat_.tools) {
      if (!first) out_.plain("\n\n");
      out_.plain("### ").plain(tool.name).plain("\nDescription: ").plain(tool.description).plain("\n\nParameters: ");
      out_.plain(to_chat_json(tool.parameters));
      first = false;
    }
    out_.own(fenced_ ? kToolsTailFenced : kToolsTailV31, false);
  }

  void write_user(const ChatMessage& message) {
    close_results();
    out_.marker(kUser);
    out_.plain(message.content);
    if (generation_ == ChatGeneration::kV3_0324) out_.marker(kAssistant);
    after_ = After::kUser;
  }

  void write_assistant(const ChatMessage& message) {
    // An answer to tool results follows them without a turn of its own.
    const bool own_turn = after_ != After::kResults;
    close_results();
    if (generation_ == ChatGeneration::kV31) {
      if (after_ == After::kUser) {
        out_.marker(kAssistant);
        out_.marker(message.prefix && chat_.thinking() ? kThink : kThinkEnd);
      }
    } else if (own_turn && generation_ != ChatGeneration::kV3_0324) {
      out_.marker(kAssistant);
    }
    out_.plain(without_reasoning(message.content));
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    if (!message.prefix) out_.marker(kEos);
    after_ = After::kAnswer;
  }

  /// Reasoning that a client left in the content. R1 cuts behind the last end tag, V3.1 behind the first, V3-0324
  /// never.
  std::string_view without_reasoning(std::string_view content) const {
    if (generation_ == ChatGeneration::kV3_0324) return content;
    const size_t at = generation_ == ChatGeneration::kV31 ? content.find(kThinkEnd) : content.rfind(kThinkEnd);
    return at == std::string_view::npos ? content : content.substr(at + kThinkEnd.size());
  }

  void write_calls(const std::vector<ChatToolCall>& calls) {
    out_.marker(kCallsBegin);
    for (size_t i = 0; i < calls.size(); ++i) {
      if (fenced_ && i > 0) out_.plain("\n");
      out_.marker(kCallBegin);
      if (fenced_)
        out_.plain("function");
      else
        out_.plain(calls[i].name);
      out_.marker(kSep);
      if (fenced_)
        out_.plain(calls[i].name).plain("\n```json\n").plain(calls[i].arguments).plain("\n```");
      else
        out_.plain(calls[i].arguments);
      out_.marker(kCallEnd);
    }
    out_.marker(kCallsEnd);
  }

  void write_result(const ChatMessage& message) {
    if (fenced_) {
      if (after_ != After::kResults)
        out_.marker(kOutputsBegin);
      else if (generation_ != ChatGeneration::kR1_0528)
        out_.plain("\n");
    }
    out_.marker(kOutputBegin);
    out_.plain(message.content);
    out_.marker(kOutputEnd);
    after_ = After::kResults;
  }

  void close_results() {
    if (after_ == After::kResults && fenced_) out_.marker(kOutputsEnd);
  }

  void write_end() {
    close_results();
    // Behind tool results the model goes on by itself.
    if (!chat_.open_answer() || after_ == After::kResults) return;
    const bool already_open = generation_ == ChatGeneration::kV3_0324 && after_ == After::kUser;
    if (!already_open) out_.marker(kAssistant);
    if (generation_ == ChatGeneration::kV31) {
      out_.marker(chat_.thinking() ? kThink : kThinkEnd);
    } else if (can_reason(generation_)) {
      if (!chat_.thinking()) {
        // These models always reason; an empty block is the only way to ask them not to.
        out_.marker(kThink);
        out_.plain("\n\n");
        out_.marker(kThinkEnd);
        out_.plain("\n\n");
      } else if (generation_ == ChatGeneration::kR1) {
        out_.marker(kThink);
        out_.plain("\n");
      }
    }
  }

  PromptWriter& out_;
  const ChatRendering& chat_;
  const ChatGeneration generation_;
  const bool fenced_;
  After after_ = After::kNothing;
};

}  // namespace

void write_marker_format(PromptWriter& out, const ChatRendering& chat) {
  if (chat.generation == ChatGeneration::kV2)
    write_v2(out, chat);
  else
    MarkerFormat(out, chat).write();
}

}  // namespace fathom
