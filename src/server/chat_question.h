// A chat as all three chat APIs ask it, and what the scheduler is to do for it.
#pragma once

#include <optional>
#include <string>

#include "server/answer_run.h"
#include "text/chat_message.h"

namespace fathom {

struct ToolChoice {
  enum class Kind { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  ///< kNamed
};

/// What the content must be: any JSON object, or one value that fits the schema.
struct AnswerFormat {
  std::optional<ChatJson> schema;
};

struct ChatQuestion {
  ChatConversation conversation;
  ToolChoice tool_choice;
  bool parallel_calls = true;
  std::optional<AnswerFormat> format;
};

/// Renders and tokenizes; fills in what the client dropped from earlier tool rounds. `generate` as the request says.
/// Throws Error{kUsage} for a tool choice without such a tool, for tools beside an answer format, and for schemas that
/// cannot be kept to.
AnswerRequest make_chat_answer(Service& service, ChatQuestion question, GenerateOptions generate);

/// Number of the prompt's tokens.
int64_t count_chat_tokens(Service& service, ChatQuestion question);

// Fields of the OpenAI form that more than one endpoint has.

/// "none", "auto", "required" or {"type": "function", "function": {"name":}} or {"type": "function", "name":}.
ToolChoice read_tool_choice(const Fields& body, std::string_view name);

/// {"type": "text" | "json_object" | "json_schema", ...}; the schema as json_schema.schema, or as schema beside the
/// type.
std::optional<AnswerFormat> read_answer_format(const Fields& format);

/// An effort's name in any API ("none", "minimal" ... "xhigh", "max"); sets both fields it means.
void set_effort(const std::string& name, const std::string& where, ChatOptions& options);

}  // namespace fathom
