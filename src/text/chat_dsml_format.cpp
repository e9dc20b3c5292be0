// The formats of V3.2 and V4. Sources: encoding_dsv32.py in the V3.2 repository; DeepSeek's reference encoder for V4
// (PyPI deepseek-recipe 0.2.0), the preview's encoding_dsv4.py where that one has no answer.
#include <optional>
#include <utility>

#include "core/error.h"
#include "text/chat_literals.h"
#include "text/chat_prompt.h"

namespace fathom {
namespace {

using namespace chat_literals;

class DsmlFormat {
 public:
  DsmlFormat(PromptWriter& out, const ChatRendering& chat)
      : out_(out),
        chat_(chat),
        messages_(chat.messages),
        v4_(chat.generation == ChatGeneration::kV4),
        thinking_(chat.thinking()) {
    for (size_t i = 0; i < messages_.size(); ++i) {
      const ChatRole role = messages_[i].role;
      // In V4 a tool result is part of a user turn.
      if (role == ChatRole::kUser || (role == ChatRole::kDeveloper && !v4_) || (role == ChatRole::kTool && v4_))
        last_user_ = i;
    }
  }

  void write_v32() {
    const ChatRole first = messages_.front().role;
    // Tools and schema belong to the first message if that is a system or developer message, else to an empty one.
    if (first != ChatRole::kSystem && first != ChatRole::kDeveloper) write_extras();
    for (size_t i = 0; i < messages_.size();) {
      const ChatMessage& message = messages_[i];
      size_t next = i + 1;
      switch (message.role) {
        case ChatRole::kSystem:
          out_.plain(message.content);
          if (i == 0) write_extras();
          break;
        case ChatRole::kDeveloper:
          if (!thinking_ || i == last_user_) write_developer(i);
          break;
        case ChatRole::kAssistant: write_assistant(i); break;
        case ChatRole::kTool:
          while (next < messages_.size() && messages_[next].role == ChatRole::kTool) ++next;
          write_results_v32(i, next);
          break;
        default:
          out_.marker(kUser);
          out_.plain(message.content);
          open_answer_v32(i);
      }
      i = next;
    }
    if (chat_.open_answer() && !open_) {
      out_.marker(kAssistant);
      out_.marker(thinking_ ? kThink : kThinkEnd);
    }
  }

  void write_v4() {
    if (thinking_) {
      const ReasoningEffort effort = chat_.options.effort.value_or(ReasoningEffort::kHigh);
      if (effort == ReasoningEffort::kHigh) out_.plain(kEffortHighV4);
      if (effort == ReasoningEffort::kMax) out_.plain(kEffortMaxV4);
    }
    bool first_system = true;
    for (const ChatMessage& message : messages_) {
      if (!is_system_v4(message)) continue;
      out_.plain(first_system ? "" : "\n\n").plain(message.content);
      first_system = false;
    }
    write_extras();
    for (size_t i = 0; i < messages_.size();) {
      const ChatMessage& message = messages_[i];
      if (is_system_v4(message)) {
        ++i;
      } else if (message.role == ChatRole::kAssistant) {
        out_.marker(kAssistant);
        out_.marker(keeps_reasoning(i) ? kThink : kThinkEnd);
        write_assistant(i++);
      } else if (message.role == ChatRole::kLatestReminder) {
        out_.marker(kLatestReminder);
        out_.plain(message.content);
        ++i;
      } else {
        i = write_turn_v4(i);
      }
    }
    const std::string& task = messages_.back().task;
    if (task.empty() ? chat_.open_answer() : task == "action") {
      out_.marker(kAssistant);
      out_.marker(thinking_ ? kThink : kThinkEnd);
    }
    if (!task.empty()) out_.marker("<｜" + task + "｜>");
  }

 private:
  static bool is_system_v4(const ChatMessage& m) {
    return m.role == ChatRole::kSystem || m.role == ChatRole::kDeveloper;
  }

  void own(std::string_view text) { out_.own(text, v4_); }

  void write_extras() {
    if (!chat_.tools.empty()) {
      out_.plain("\n\n");
      own(v4_ ? kToolsHeadV4 : kToolsHeadV32);
      for (size_t i = 0; i < chat_.tools.size(); ++i) {
        out_.plain(i == 0 ? "" : "\n").plain(to_chat_json(chat_.tools[i].function));
      }
      own(v4_ ? kToolsTailV4 : kToolsTailV32);
    }
    write_response_format(out_, chat_.options);
  }

  void write_developer(size_t i) {
    out_.marker(kUser);
    if (i == 0) write_extras();
    out_.plain("\n\n# The user's message is: ").plain(messages_[i].content);
    open_answer_v32(i);
  }

  /// V3.2 opens the answer with the turn that asks for it.
  void open_answer_v32(size_t i) {
    open_ = true;
    if (i + 1 == messages_.size() && !chat_.open_answer()) return;
    out_.marker(kAssistant);
    out_.marker(thinking_ && i == last_user_ ? kThink : kThinkEnd);
  }

  void write_results_v32(size_t first, size_t last) {
    out_.plain("\n\n<function_results>");
    std::vector<const ChatMessage*> results;
    for (size_t i = first; i < last; ++i) results.push_back(&messages_[i]);
    sort_by_call(results, std::exchange(last_calls_, {}));
    for (const ChatMessage* result : results) {
      out_.plain("\n<result>").plain(result->content).plain("</result>");
    }
    out_.plain("\n</function_results>");
    open_ = true;
    if (last == messages_.size() && !chat_.open_answer()) return;
    out_.plain("\n\n");
    out_.marker(thinking_ && (!last_user_ || first > *last_user_) ? kThink : kThinkEnd);
  }

  /// User messages and tool results that follow one another are one turn of V4; system messages between them do not
  /// count.
  size_t write_turn_v4(size_t first) {
    std::vector<const ChatMessage*> parts, results;
    size_t end = first;
    for (; end < messages_.size(); ++end) {
      const ChatMessage& message = messages_[end];
      if (is_system_v4(message)) continue;
      if (message.role != ChatRole::kUser && message.role != ChatRole::kTool) break;
      parts.push_back(&message);
      if (message.role == ChatRole::kTool) results.push_back(&message);
    }
    sort_by_call(results, std::exchange(last_calls_, {}));
    out_.marker(kUser);
    auto result = results.begin();
    for (const ChatMessage* part : parts) {
      if (part != parts.front()) out_.plain("\n\n");
      if (part->role == ChatRole::kTool)
        out_.plain("<tool_result>").plain((*result++)->content).plain("</tool_result>");
      else
        out_.plain(part->content);
    }
    return end;
  }

  /// V3.2 keeps the reasoning behind the last question; V4 keeps all of it as soon as there are tools, and else only
  /// that of an answer that goes on.
  bool keeps_reasoning(size_t i) const {
    if (!thinking_) return false;
    const bool after_question = !last_user_ || i > *last_user_;
    if (!v4_) return after_question;
    return !chat_.tools.empty() || (after_question && !chat_.open_answer());
  }

  void write_assistant(size_t i) {
    const ChatMessage& message = messages_[i];
    if (keeps_reasoning(i)) {
      out_.plain(message.reasoning_content);
      out_.marker(kThinkEnd);
    }
    out_.plain(message.content);
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    if (!message.prefix) out_.marker(kEos);
    last_calls_ = message.tool_calls;
    open_ = false;
  }

  void write_calls(const std::vector<ChatToolCall>& calls) {
    const std::string_view block = v4_ ? "tool_calls>" : "function_calls>";
    out_.plain("\n\n");
    tag("<", block);
    out_.plain("\n");
    for (const ChatToolCall& call : calls) {
      tag("<", "invoke name=\"");
      out_.plain(call.name).plain("\">\n");
      write_arguments(call);
      tag("</", "invoke>");
      out_.plain("\n");
    }
    tag("</", block);
  }

  void tag(std::string_view open, std::string_view rest) {
    out_.plain(open);
    own(kDsml);
    out_.plain(rest);
  }

  void write_arguments(const ChatToolCall& call) {
    std::optional<ChatJson> arguments;
    try {
      arguments = parse_chat_json(call.arguments, "arguments");
    } catch (const Error&) {
      // The history may hold what a model got wrong: it is shown as it was.
    }
    if (!arguments || !arguments->is_object()) {
      arguments = ChatJson::object();
      (*arguments)["arguments"] = call.arguments;
    }
    for (const auto& [key, value] : arguments->items()) {
      tag("<", "parameter name=\"");
      out_.plain(key).plain("\" string=\"").plain(value.is_string() ? "true\">" : "false\">");
      out_.plain(value.is_string() ? value.get_ref<const std::string&>() : to_chat_json(value));
      tag("</", "parameter>");
      out_.plain("\n");
    }
    if (arguments->empty() && !v4_) out_.plain("\n");
  }

  PromptWriter& out_;
  const ChatRendering& chat_;
  const std::vector<ChatMessage>& messages_;
  const bool v4_;
  const bool thinking_;
  std::optional<size_t> last_user_;
  std::vector<ChatToolCall> last_calls_;  // of the last assistant message, until their results are written
  bool open_ = false;                     // V3.2: an answer is open, or need not be opened
};

}  // namespace

void write_dsml_format(PromptWriter& out, const ChatRendering& chat) {
  DsmlFormat format(out, chat);
  if (chat.generation == ChatGeneration::kV4)
    format.write_v4();
  else
    format.write_v32();
}

}  // namespace fathom
