#include "text/chat_message.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

constexpr std::array<std::pair<ChatRole, std::string_view>, 6> kRoles = {{
    {ChatRole::kSystem, "system"},
    {ChatRole::kDeveloper, "developer"},
    {ChatRole::kUser, "user"},
    {ChatRole::kAssistant, "assistant"},
    {ChatRole::kTool, "tool"},
    {ChatRole::kLatestReminder, "latest_reminder"},
}};

[[noreturn]] void refuse(const std::string& where, const std::string& why) {
  throw Error{ErrorCode::kUsage, where + ": " + why};
}

std::string kind_of(const ChatJson& value) {
  if (value.is_string()) return "text";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return value.is_number() ? "a number" : value.is_boolean() ? "true or false" : "null";
}

void expect_object(const ChatJson& value, const std::string& where) {
  if (!value.is_object()) refuse(where, "wrong kind; expected an object, got " + kind_of(value));
}

void expect_list(const ChatJson& value, const std::string& where) {
  if (!value.is_array()) refuse(where, "wrong kind; expected a list, got " + kind_of(value));
}

const ChatJson* member(const ChatJson& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

/// Absent and null are the empty text.
std::string optional_text(const ChatJson& object, std::string_view key, const std::string& where) {
  const ChatJson* value = member(object, key);
  if (value == nullptr || value->is_null()) return {};
  if (!value->is_string()) refuse(where + "." + std::string(key), "wrong kind; expected text, got " + kind_of(*value));
  return value->get<std::string>();
}

std::string required_text(const ChatJson& object, std::string_view key, const std::string& where) {
  const ChatJson* value = member(object, key);
  if (value == nullptr || !value->is_string()) {
    refuse(where + "." + std::string(key), "expected text, got " + (value == nullptr ? "nothing" : kind_of(*value)));
  }
  return value->get<std::string>();
}

std::optional<bool> optional_flag(const ChatJson& object, std::string_view key, const std::string& where) {
  const ChatJson* value = member(object, key);
  if (value == nullptr || value->is_null()) return {};
  if (!value->is_boolean())
    refuse(where + "." + std::string(key), "wrong kind; expected true or false, got " + kind_of(*value));
  return value->get<bool>();
}

ChatRole read_role(const ChatJson& message, const std::string& where) {
  const std::string text = required_text(message, "role", where);
  for (const auto& [role, name] : kRoles) {
    if (name == text) return role;
  }
  refuse(where + ".role",
         "unknown; expected system, developer, user, assistant, tool or latest_reminder, got " + in_quotes(text));
}

std::string read_content(const ChatJson& message, ChatRole role, const std::string& where) {
  const ChatJson* content = member(message, "content");
  if (content == nullptr || content->is_null()) {
    if (role == ChatRole::kAssistant) return {};
    refuse(where + ".content", std::string("expected text, got ") + (content == nullptr ? "nothing" : "null"));
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array())
    refuse(where + ".content", "wrong kind; expected text or a list of texts, got " + kind_of(*content));
  std::string joined;
  for (size_t i = 0; i < content->size(); ++i) {
    const std::string at = where + ".content[" + std::to_string(i) + "]";
    const ChatJson& part = (*content)[i];
    expect_object(part, at);
    const std::string type = required_text(part, "type", at);
    if (type != "text") refuse(at + ".type", "unsupported; expected \"text\", got " + in_quotes(type));
    if (i > 0) joined += '\n';
    joined += required_text(part, "text", at);
  }
  return joined;
}

void check_function_type(const ChatJson& object, const std::string& where) {
  const ChatJson* type = member(object, "type");
  if (type != nullptr && (!type->is_string() || type->get_ref<const std::string&>() != "function")) {
    refuse(where + ".type", "unsupported; expected \"function\"");
  }
}

const ChatJson& function_of(const ChatJson& object, const std::string& where) {
  expect_object(object, where);
  check_function_type(object, where);
  const ChatJson* function = member(object, "function");
  if (function == nullptr) refuse(where + ".function", "expected an object, got nothing");
  expect_object(*function, where + ".function");
  return *function;
}

std::vector<ChatToolCall> read_tool_calls(const ChatJson& message, const std::string& where) {
  const ChatJson* list = member(message, "tool_calls");
  if (list == nullptr || list->is_null()) return {};
  expect_list(*list, where + ".tool_calls");
  std::vector<ChatToolCall> calls;
  calls.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string at = where + ".tool_calls[" + std::to_string(i) + "]";
    const ChatJson& function = function_of((*list)[i], at);
    ChatToolCall call;
    call.id = optional_text((*list)[i], "id", at);
    call.name = required_text(function, "name", at + ".function");
    if (call.name.empty()) refuse(at + ".function.name", "empty; expected the name of a tool");
    // Some clients send the arguments as an object.
    const ChatJson* arguments = member(function, "arguments");
    call.arguments = arguments != nullptr && arguments->is_object()
                         ? to_chat_json(*arguments)
                         : required_text(function, "arguments", at + ".function");
    calls.push_back(std::move(call));
  }
  return calls;
}

ChatMessage read_message(const ChatJson& value, bool last, const std::string& where) {
  expect_object(value, where);
  ChatMessage message;
  message.role = read_role(value, where);
  message.content = read_content(value, message.role, where);
  message.name = optional_text(value, "name", where);
  message.prefix = optional_flag(value, "prefix", where).value_or(false);
  if (message.prefix && (message.role != ChatRole::kAssistant || !last)) {
    refuse(where + ".prefix", "not possible here; expected on the last message, with the role assistant");
  }
  if (message.role == ChatRole::kAssistant) {
    message.reasoning_content = optional_text(value, "reasoning_content", where);
    message.tool_calls = read_tool_calls(value, where);
    if (message.prefix && !message.tool_calls.empty()) refuse(where + ".prefix", "not possible with tool_calls");
  }
  if (message.role == ChatRole::kTool) message.tool_call_id = optional_text(value, "tool_call_id", where);
  message.task = optional_text(value, "task", where);
  if (!message.task.empty()) {
    if (std::find(kQuickTasks.begin(), kQuickTasks.end(), message.task) == kQuickTasks.end())
      refuse(where + ".task",
             "unknown; expected action, query, authority, domain, title or read_url, got " + in_quotes(message.task));
    if (!last || message.prefix || (message.role != ChatRole::kUser && message.role != ChatRole::kAssistant))
      refuse(where + ".task",
             "not possible here; expected on the last message, of a user or a whole one of an assistant");
  }
  return message;
}

/// Tool names stand between quotes and on lines of their own in the prompt.
void check_tool_name(const std::string& name, const std::string& where) {
  constexpr size_t kMaxBytes = 256;
  if (name.empty() || name.size() > kMaxBytes) {
    refuse(where,
           "wrong length; expected 1 to " + std::to_string(kMaxBytes) + " bytes, got " + std::to_string(name.size()));
  }
  for (const char c : name) {
    if (static_cast<unsigned char>(c) <= 0x20 || c == '"' || c == '<' || c == '>' || c == 0x7f) {
      refuse(where, "expected no spaces, quotes, angle brackets or control characters, got " + in_quotes(name));
    }
  }
}

}  // namespace

std::string_view name_of(ChatRole role) {
  for (const auto& [known, name] : kRoles) {
    if (known == role) return name;
  }
  FATHOM_CHECK(false, "unknown chat role");
}

std::vector<ChatMessage> read_chat_messages(const ChatJson& value) {
  expect_list(value, "messages");
  if (value.empty()) refuse("messages", "empty; expected at least one message");
  std::vector<ChatMessage> messages;
  messages.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    messages.push_back(read_message(value[i], i + 1 == value.size(), "messages[" + std::to_string(i) + "]"));
  }
  return messages;
}

std::vector<ChatTool> read_chat_tools(const ChatJson& value) {
  expect_list(value, "tools");
  if (value.size() > kMaxChatTools) {
    refuse("tools",
           "too many; expected at most " + std::to_string(kMaxChatTools) + ", got " + std::to_string(value.size()));
  }
  std::vector<ChatTool> tools;
  tools.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string where = "tools[" + std::to_string(i) + "]";
    const ChatJson& function = function_of(value[i], where);
    ChatTool tool;
    tool.name = required_text(function, "name", where + ".function");
    check_tool_name(tool.name, where + ".function.name");
    tool.description = optional_text(function, "description", where + ".function");
    const ChatJson* parameters = member(function, "parameters");
    if (parameters != nullptr && !parameters->is_null()) expect_object(*parameters, where + ".function.parameters");
    tool.parameters = parameters != nullptr && !parameters->is_null() ? *parameters : ChatJson::object();
    tool.function = function;
    tools.push_back(std::move(tool));
  }
  return tools;
}

std::optional<ReasoningEffort> reasoning_effort_from_name(std::string_view name, const std::string& where) {
  if (name == "none") return {};
  if (name == "minimal" || name == "low") return ReasoningEffort::kLow;
  if (name == "medium" || name == "high") return ReasoningEffort::kHigh;
  if (name == "max") return ReasoningEffort::kMax;
  refuse(where, "unknown; expected none, minimal, low, medium, high or max, got " + in_quotes(name));
}

ChatOptions read_chat_options(const ChatJson& value) {
  const std::string where = "options";
  expect_object(value, where);
  ChatOptions options;
  options.add_generation_prompt = optional_flag(value, "add_generation_prompt", where).value_or(true);
  options.thinking = optional_flag(value, "thinking", where);
  if (const ChatJson* effort = member(value, "effort"); effort != nullptr && !effort->is_null()) {
    options.effort = reasoning_effort_from_name(required_text(value, "effort", where), "options.effort");
    if (!options.effort) options.thinking = false;
  }
  if (const ChatJson* schema = member(value, "response_schema"); schema != nullptr && !schema->is_null()) {
    expect_object(*schema, "options.response_schema");
    options.response_schema = *schema;
  }
  return options;
}

ChatConversation read_chat_conversation(const ChatJson& value) {
  ChatConversation conversation;
  if (value.is_array()) {
    conversation.messages = read_chat_messages(value);
    return conversation;
  }
  expect_object(value, "conversation");
  const ChatJson* messages = member(value, "messages");
  if (messages == nullptr) refuse("messages", "expected a list, got nothing");
  conversation.messages = read_chat_messages(*messages);
  if (const ChatJson* tools = member(value, "tools"); tools != nullptr && !tools->is_null()) {
    conversation.tools = read_chat_tools(*tools);
  }
  if (const ChatJson* options = member(value, "options"); options != nullptr && !options->is_null()) {
    conversation.options = read_chat_options(*options);
  }
  return conversation;
}

}  // namespace fathom
