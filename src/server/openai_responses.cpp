// POST /v1/responses, without stored responses. Source: platform.openai.com/docs/api-reference/responses and
// responses-streaming.
#include "core/error.h"
#include "core/printable.h"
#include "server/chat_question.h"
#include "server/endpoint.h"
#include "server/generation_fields.h"

namespace fathom {
namespace {

struct ResponsesCall {
  AnswerRequest answer;
  bool stream = false;
  ChatJson echo = ChatJson::object();  ///< fields of the request that the response repeats
};

/// A string, or a list of parts that are texts.
std::string read_parts(const ChatJson& content, const std::string& path) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    refuse_field(path, "wrong kind; expected text or a list of parts, got " + std::string(kind_of(content)));
  std::string joined;
  for (size_t i = 0; i < content.size(); ++i) {
    const Fields part(content[i], path + "[" + std::to_string(i) + "]");
    const std::string type = part.required_text("type");
    if (type == "refusal") {
      joined += part.required_text("refusal");
      continue;
    }
    if (type != "input_text" && type != "output_text" && type != "text" && type != "reasoning_text" &&
        type != "summary_text") {
      refuse_field(part.path("type"), "unsupported; expected input_text or output_text, got " + in_quotes(type));
    }
    joined += (joined.empty() ? "" : "\n") + part.required_text("text");
  }
  return joined;
}

/// Items to messages: what the assistant produced between two inputs is one message.
class ItemReader {
 public:
  explicit ItemReader(std::vector<ChatMessage>& out) : out_(out) {}

  void read(const ChatJson& value, const std::string& path) {
    const Fields item(value, path);
    const std::string type = item.text("type").value_or("message");
    if (type == "message") {
      read_message(item);
    } else if (type == "reasoning") {
      read_reasoning(item);
    } else if (type == "function_call") {
      ChatToolCall call{item.required_text("call_id"), item.required_text("name"), item.required_text("arguments")};
      if (call.name.empty()) refuse_field(item.path("name"), "empty; expected the name of a tool");
      assistant().tool_calls.push_back(std::move(call));
    } else if (type == "function_call_output") {
      ChatMessage& result = add(ChatRole::kTool);
      result.tool_call_id = item.required_text("call_id");
      const ChatJson* output = item.find("output");
      if (output == nullptr) refuse_field(item.path("output"), "missing; expected text");
      result.content = read_parts(*output, item.path("output"));
    } else {
      refuse_field(
          item.path("type"),
          "unsupported; expected message, reasoning, function_call or function_call_output, got " + in_quotes(type));
    }
  }

 private:
  ChatMessage& add(ChatRole role) {
    out_.emplace_back();
    out_.back().role = role;
    return out_.back();
  }

  ChatMessage& assistant() {
    return !out_.empty() && out_.back().role == ChatRole::kAssistant ? out_.back() : add(ChatRole::kAssistant);
  }

  void read_message(const Fields& item) {
    const std::string role = item.required_text("role");
    const ChatJson* content = item.find("content");
    if (content == nullptr) refuse_field(item.path("content"), "missing; expected text or a list of parts");
    const std::string text = read_parts(*content, item.path("content"));
    if (role == "assistant") {
      const bool goes_on = !out_.empty() && out_.back().role == ChatRole::kAssistant && out_.back().content.empty() &&
                           out_.back().tool_calls.empty();
      (goes_on ? out_.back() : add(ChatRole::kAssistant)).content = text;
    } else if (role == "user" || role == "system" || role == "developer") {
      add(role == "user"     ? ChatRole::kUser
          : role == "system" ? ChatRole::kSystem
                             : ChatRole::kDeveloper)
          .content = text;
    } else {
      refuse_field(item.path("role"), "unknown; expected user, assistant, system or developer, got " + in_quotes(role));
    }
  }

  void read_reasoning(const Fields& item) {
    const ChatJson* content = item.find("content");
    if (content == nullptr) return;  // only a summary or something encrypted: not what this model wrote
    ChatMessage& message = add(ChatRole::kAssistant);
    message.reasoning_content = read_parts(*content, item.path("content"));
  }

  std::vector<ChatMessage>& out_;
};

/// Functions only: tools that the host of the API would run itself do not exist here.
std::vector<ChatTool> read_tools(const ChatJson& list) {
  ChatJson converted = ChatJson::array();
  for (size_t i = 0; i < list.size(); ++i) {
    const Fields tool(list[i], "tools[" + std::to_string(i) + "]");
    if (tool.required_text("type") != "function") continue;
    ChatJson function = {{"name", tool.required_text("name")}};
    if (const auto description = tool.text("description")) function["description"] = *description;
    if (const auto parameters = tool.object("parameters")) function["parameters"] = parameters->value();
    ChatJson outer = {{"type", "function"}};
    outer["function"] = std::move(function);
    converted.push_back(std::move(outer));
  }
  return read_chat_tools(converted);
}

ResponsesCall read_call(Service& service, const ChatJson& json) {
  const Fields body(json, "");
  check_model_name(body);
  for (const std::string_view name : {"previous_response_id", "conversation"}) {
    if (body.find(name) != nullptr)
      refuse_field(std::string(name),
                   "not supported: responses are not stored; expected the whole conversation in input");
  }
  if (body.flag("background").value_or(false)) refuse_field("background", "not supported: responses are not stored");
  ChatQuestion question;
  ChatConversation& chat = question.conversation;
  if (const auto instructions = body.text("instructions"); instructions && !instructions->empty()) {
    ChatMessage message;
    message.role = ChatRole::kSystem;
    message.content = *instructions;
    chat.messages.push_back(std::move(message));
  }
  const ChatJson* input = body.find("input");
  if (input == nullptr) refuse_field("input", "missing; expected text or a list of items");
  if (input->is_string()) {
    chat.messages.emplace_back();
    chat.messages.back().content = input->get<std::string>();
  } else {
    const ChatJson* items = body.list("input");
    if (items->empty()) refuse_field("input", "empty; expected at least one item");
    for (size_t i = 0; i < items->size(); ++i)
      ItemReader(chat.messages).read((*items)[i], "input[" + std::to_string(i) + "]");
  }
  if (chat.messages.empty()) refuse_field("input", "holds no message");
  if (const ChatJson* tools = body.list("tools"); tools != nullptr && !tools->empty()) chat.tools = read_tools(*tools);
  question.tool_choice = read_tool_choice(body, "tool_choice");
  question.parallel_calls = body.flag("parallel_tool_calls").value_or(true);
  if (const auto reasoning = body.object("reasoning")) {
    if (const auto effort = reasoning->text("effort")) set_effort(*effort, "reasoning.effort", chat.options);
  }
  if (const auto text = body.object("text")) {
    if (const auto format = text->object("format")) question.format = read_answer_format(*format);
  }
  GenerateOptions generate = read_generate_options(service, body, {"max_output_tokens"}, "stop");
  ResponsesCall call;
  call.stream = body.flag("stream").value_or(false);
  for (const std::string_view name :
       {"instructions", "max_output_tokens", "reasoning", "text", "tool_choice", "tools", "metadata", "user"}) {
    if (const ChatJson* value = body.find(name)) call.echo[std::string(name)] = *value;
  }
  call.echo["temperature"] = generate.sampling.temperature;
  call.echo["top_p"] = generate.sampling.top_p;
  call.echo["parallel_tool_calls"] = question.parallel_calls;
  const std::string user = read_user(body);
  call.answer = make_chat_answer(service, std::move(question), std::move(generate));
  call.answer.user = user;
  return call;
}

ChatJson text_part(const std::string& text) {
  return {{"type", "output_text"}, {"annotations", ChatJson::array()}, {"logprobs", ChatJson::array()}, {"text", text}};
}

ChatJson reasoning_item(const std::string& id, const std::string& text, const char* status) {
  ChatJson item = {{"id", id}, {"type", "reasoning"}, {"summary", ChatJson::array()}};
  item["content"] = ChatJson::array();
  if (!text.empty()) item["content"].push_back({{"type", "reasoning_text"}, {"text", text}});
  item["status"] = status;
  return item;
}

ChatJson message_item(const std::string& id, const std::string& text, bool with_part, const char* status) {
  ChatJson item = {{"id", id}, {"type", "message"}, {"role", "assistant"}, {"status", status}};
  item["content"] = ChatJson::array();
  if (with_part) item["content"].push_back(text_part(text));
  return item;
}

ChatJson call_item(const std::string& id, const std::string& call_id, const std::string& name,
                   const std::string& arguments, const char* status) {
  return {{"id", id},     {"type", "function_call"}, {"call_id", call_id},
          {"name", name}, {"arguments", arguments},  {"status", status}};
}

/// Builds the response item by item; with a stream, tells each step as an event.
class ResponseBuilder final : public AnswerListener {
 public:
  ResponseBuilder(Service& service, HttpExchange& exchange, const AnswerRun& run, ChatJson echo, EventStream* stream)
      : exchange_(exchange), run_(run), stream_(stream) {
    response_ = {{"id", random_id("resp_")}, {"object", "response"}, {"created_at", unix_time()},
                 {"status", "in_progress"},  {"error", nullptr},     {"incomplete_details", nullptr}};
    ChatJson defaults = {{"instructions", nullptr},
                         {"max_output_tokens", nullptr},
                         {"metadata", ChatJson::object()},
                         {"previous_response_id", nullptr},
                         {"store", false},
                         {"tool_choice", "auto"},
                         {"tools", ChatJson::array()},
                         {"truncation", "disabled"},
                         {"user", nullptr}};
    defaults["reasoning"] = {{"effort", nullptr}, {"summary", nullptr}};
    defaults["text"]["format"]["type"] = "text";
    for (const auto& [key, value] : defaults.items()) response_[key] = value;
    for (const auto& [key, value] : echo.items()) response_[key] = value;
    response_["model"] = service.options.model_name;
    response_["output"] = ChatJson::array();
    response_["usage"] = nullptr;
  }

  void begin() {
    tell_response("response.created");
    tell_response("response.in_progress");
  }

  void on_delta(size_t, const AnswerDelta& delta) override {
    const ChatEvent& event = delta.event;
    switch (event.kind) {
      case ChatEvent::Kind::kReasoning:
        open(Item::kReasoning);
        text_ += event.text;
        return tell("response.reasoning_text.delta", {{"content_index", 0}, {"delta", event.text}});
      case ChatEvent::Kind::kContent:
        open(Item::kMessage);
        text_ += event.text;
        return tell("response.output_text.delta",
                    {{"content_index", 0}, {"delta", event.text}, {"logprobs", ChatJson::array()}});
      case ChatEvent::Kind::kCallStart:
        close();
        call_id_ = delta.call_id;
        call_name_ = event.text;
        return open(Item::kCall);
      case ChatEvent::Kind::kCallArguments:
        text_ += event.text;
        return tell("response.function_call_arguments.delta", {{"delta", event.text}});
      case ChatEvent::Kind::kCallEnd:
        whole_ = event.complete;
        close();
        whole_ = true;
    }
  }

  void on_finished(size_t, const FinishedAnswer& answer) override {
    whole_ = answer.parsed.finish_reason != "length";
    close();
    const auto tokens = static_cast<int64_t>(answer.generation.token_ids.size());
    response_["status"] = whole_ ? "completed" : "incomplete";
    if (!whole_) response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
    response_["usage"] = {{"input_tokens", run_.prompt_tokens()},
                          {"input_tokens_details", {{"cached_tokens", run_.cached_tokens()}}},
                          {"output_tokens", tokens},
                          {"output_tokens_details", {{"reasoning_tokens", answer.reasoning_tokens}}},
                          {"total_tokens", run_.prompt_tokens() + tokens}};
    tell_response(whole_ ? "response.completed" : "response.incomplete");
  }

  void fail(const ApiError& error) {
    response_["status"] = "failed";
    response_["error"] = {{"code", "server_error"}, {"message", error.what()}};
    tell_response("response.failed");
  }

  void on_turn() override {
    if (stream_ != nullptr) stream_->tick();
  }
  bool gone() override { return (stream_ != nullptr && stream_->broken()) || exchange_.client_gone(); }
  const ChatJson& response() const { return response_; }

 private:
  enum class Item { kNone, kReasoning, kMessage, kCall };

  void send(const std::string& type, ChatJson members) {
    if (stream_ == nullptr) return;
    ChatJson event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(members);
    stream_->event(type, event);
  }
  void tell_response(const std::string& type) {
    ChatJson members = ChatJson::object();
    members["response"] = response_;
    send(type, std::move(members));
  }
  /// An event inside the open item.
  void tell(const std::string& type, const ChatJson& members) {
    if (stream_ == nullptr) return;
    ChatJson all = {{"item_id", item_id_}, {"output_index", output_index()}};
    all.update(members);
    send(type, std::move(all));
  }
  void tell_item(const std::string& type, const ChatJson& item) {
    ChatJson members = {{"output_index", output_index()}};
    members["item"] = item;
    send(type, std::move(members));
  }
  size_t output_index() const { return response_.at("output").size(); }

  void open(Item item) {
    if (open_ == item) return;
    close();
    open_ = item;
    text_.clear();
    switch (item) {
      case Item::kReasoning:
        item_id_ = random_id("rs_");
        return tell_item("response.output_item.added", reasoning_item(item_id_, "", "in_progress"));
      case Item::kMessage:
        item_id_ = random_id("msg_");
        tell_item("response.output_item.added", message_item(item_id_, "", false, "in_progress"));
        return tell("response.content_part.added", {{"content_index", 0}, {"part", text_part("")}});
      case Item::kCall:
        item_id_ = random_id("fc_");
        return tell_item("response.output_item.added", call_item(item_id_, call_id_, call_name_, "", "in_progress"));
      case Item::kNone: return;
    }
  }

  void close() {
    const Item item = std::exchange(open_, Item::kNone);
    const char* status = whole_ ? "completed" : "incomplete";
    ChatJson done;
    switch (item) {
      case Item::kNone: return;
      case Item::kReasoning:
        tell("response.reasoning_text.done", {{"content_index", 0}, {"text", text_}});
        done = reasoning_item(item_id_, text_, status);
        break;
      case Item::kMessage:
        tell("response.output_text.done", {{"content_index", 0}, {"text", text_}, {"logprobs", ChatJson::array()}});
        tell("response.content_part.done", {{"content_index", 0}, {"part", text_part(text_)}});
        done = message_item(item_id_, text_, true, status);
        break;
      case Item::kCall:
        tell("response.function_call_arguments.done", {{"name", call_name_}, {"arguments", text_}});
        done = call_item(item_id_, call_id_, call_name_, text_, status);
        break;
    }
    tell_item("response.output_item.done", done);
    response_["output"].push_back(std::move(done));
  }

  HttpExchange& exchange_;
  const AnswerRun& run_;
  EventStream* const stream_;  // null: nothing is told
  ChatJson response_;
  Item open_ = Item::kNone;
  std::string item_id_, call_id_, call_name_;
  std::string text_;   // of the open item
  bool whole_ = true;  // what is closed next is not cut off
  int64_t sequence_ = 0;
};

}  // namespace

void responses(Service& service, HttpExchange& exchange) {
  ResponsesCall call =
      service.with_body(exchange.request(), [&](const ChatJson& json) { return read_call(service, json); });
  AnswerRun run(service, exchange.caller(), std::move(call.answer));
  if (call.stream) {
    return stream_events(service, exchange, ApiStyle::kOpenAi, [&](EventStream& stream) {
      ResponseBuilder builder(service, exchange, run, std::move(call.echo), &stream);
      builder.begin();
      try {
        run.run(builder);
      } catch (...) {
        builder.fail(current_error());
      }
    });
  }
  ResponseBuilder builder(service, exchange, run, std::move(call.echo), nullptr);
  if (run.run(builder) == AnswerRun::End::kFinished) respond_json(exchange, builder.response());
}

}  // namespace fathom
