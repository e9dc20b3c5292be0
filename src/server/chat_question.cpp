#include "server/chat_question.h"

#include <algorithm>

#include "core/error.h"
#include "core/printable.h"
#include "server/json_constraint.h"
#include "text/chat_forced_call.h"
#include "text/chat_format.h"

namespace fathom {
namespace {

bool must_call(const ToolChoice& choice) {
  return choice.kind == ToolChoice::Kind::kRequired || choice.kind == ToolChoice::Kind::kNamed;
}

const ChatTool* find_tool(const std::vector<ChatTool>& tools, const std::string& name) {
  const auto it = std::find_if(tools.begin(), tools.end(), [&](const ChatTool& tool) { return tool.name == name; });
  return it == tools.end() ? nullptr : &*it;
}

/// Applies the tool choice to the conversation; returns the tool that must be called, if it is known by name.
const ChatTool* apply_tool_choice(ChatQuestion& question) {
  ChatConversation& chat = question.conversation;
  ToolChoice& choice = question.tool_choice;
  if (choice.kind == ToolChoice::Kind::kNone) chat.tools.clear();
  if (!must_call(choice)) return nullptr;
  if (chat.tools.empty()) refuse_field("tool_choice", "asks for a call, but there are no tools");
  if (chat.messages.back().prefix || !chat.messages.back().task.empty())
    refuse_field("tool_choice", "a call cannot follow a message with prefix or task");
  // The call is the answer's beginning, so there is no reasoning before it.
  chat.options.thinking = false;
  if (choice.kind == ToolChoice::Kind::kRequired && chat.tools.size() == 1) return &chat.tools.front();
  if (choice.kind != ToolChoice::Kind::kNamed) return nullptr;
  const ChatTool* tool = find_tool(chat.tools, choice.name);
  if (tool == nullptr)
    refuse_field("tool_choice", "names " + in_quotes(choice.name) + ", which is not among the tools");
  return tool;
}

std::vector<PromptPart> render(Service& service, ChatQuestion& question) {
  ChatConversation& chat = question.conversation;
  service.replay.complete(chat.messages);
  if (question.format) chat.options.response_schema = question.format->schema.value_or(ChatJson{{"type", "object"}});
  return render_chat(service.engine.chat_generation(), chat.messages, chat.tools, chat.options);
}

}  // namespace

AnswerRequest make_chat_answer(Service& service, ChatQuestion question, GenerateOptions generate) {
  const ChatGeneration generation = service.engine.chat_generation();
  const ChatTool* forced = apply_tool_choice(question);
  if (question.format && !question.conversation.tools.empty()) {
    refuse_field("response_format",
                 "not possible beside tools, as a call is not the JSON asked for; try tool_choice none");
  }
  std::vector<PromptPart> parts = render(service, question);

  AnswerRequest request;
  request.options = std::move(generate);
  request.parallel_calls = question.parallel_calls;
  request.parser.starts_in_reasoning = opens_reasoning(parts);
  request.parser.parse_calls = !question.conversation.tools.empty();
  request.parser.tools = question.conversation.tools;
  // Calls are written with control tokens, which are otherwise no part of an answer.
  request.options.show_control_tokens = request.parser.parse_calls;
  if (must_call(question.tool_choice)) {
    const ForcedCall call = open_call(generation, forced != nullptr ? forced->name : "");
    request.opening = join_parts(call.opening);
    parts.insert(parts.end(), call.opening.begin(), call.opening.end());
    request.make_constraint = constrain_call(service, call, forced, question.conversation.tools);
  }
  if (question.format)
    request.make_constraint = constrain_answer(service, *question.format, request.parser.starts_in_reasoning);
  request.prompts.push_back(service.engine.tokenizer().encode(parts));
  return request;
}

int64_t count_chat_tokens(Service& service, ChatQuestion question) {
  apply_tool_choice(question);
  return static_cast<int64_t>(service.engine.tokenizer().encode(render(service, question)).size());
}

ToolChoice read_tool_choice(const Fields& body, std::string_view name) {
  const ChatJson* value = body.find(name);
  if (value == nullptr) return {};
  if (value->is_string()) {
    const std::string word = value->get<std::string>();
    if (word == "auto") return {};
    if (word == "none") return {ToolChoice::Kind::kNone, {}};
    if (word == "required") return {ToolChoice::Kind::kRequired, {}};
    refuse_field(body.path(name), "unknown; expected none, auto, required or a function, got " + in_quotes(word));
  }
  const Fields choice(*value, body.path(name));
  if (const std::string type = choice.required_text("type"); type != "function")
    refuse_field(choice.path("type"), "unsupported; expected \"function\", got " + in_quotes(type));
  const std::optional<Fields> function = choice.object("function");
  return {ToolChoice::Kind::kNamed, (function ? *function : choice).required_text("name")};
}

std::optional<AnswerFormat> read_answer_format(const Fields& format) {
  const std::string type = format.required_text("type");
  if (type == "text") return {};
  std::optional<Fields> inner = format.object("json_schema");
  std::optional<Fields> schema = (inner ? *inner : format).object("schema");
  if (type == "json_object") return AnswerFormat{schema ? std::optional(schema->value()) : std::nullopt};
  if (type != "json_schema")
    refuse_field(format.path("type"), "unknown; expected text, json_object or json_schema, got " + in_quotes(type));
  if (!schema) refuse_field(format.path("json_schema.schema"), "missing; expected an object");
  return AnswerFormat{schema->value()};
}

void set_effort(const std::string& name, const std::string& where, ChatOptions& options) {
  options.effort = reasoning_effort_from_name(name == "xhigh" ? "max" : name, where);
  options.thinking = options.effort.has_value();
}

}  // namespace fathom
