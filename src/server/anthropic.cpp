// POST /v1/messages and /v1/messages/count_tokens. Source: docs.anthropic.com/en/api/messages and messages-streaming.
#include "core/error.h"
#include "core/printable.h"
#include "server/chat_question.h"
#include "server/endpoint.h"
#include "server/generation_fields.h"

namespace fathom {
namespace {

struct MessagesCall {
  ChatQuestion question;
  GenerateOptions generate;
  std::string user;
  bool stream = false;
};

/// Text of a content that may hold nothing else: a string, or blocks of type text.
std::string read_text_blocks(const ChatJson& content, const std::string& path) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array())
    refuse_field(path, "wrong kind; expected text or a list of blocks, got " + std::string(kind_of(content)));
  std::string joined;
  for (size_t i = 0; i < content.size(); ++i) {
    const Fields block(content[i], path + "[" + std::to_string(i) + "]");
    if (const std::string type = block.required_text("type"); type != "text")
      refuse_field(block.path("type"), "unsupported; expected \"text\", got " + in_quotes(type));
    joined += (joined.empty() ? "" : "\n") + block.required_text("text");
  }
  return joined;
}

/// System blocks; those that clients change with every request, for billing, would spoil the cached prompt and say
/// nothing to the model.
std::string read_system(const ChatJson& system) {
  if (system.is_string()) return system.get<std::string>();
  ChatJson kept = ChatJson::array();
  if (!system.is_array())
    refuse_field("system", "wrong kind; expected text or a list of blocks, got " + std::string(kind_of(system)));
  for (const ChatJson& block : system) {
    const auto text = block.is_object() ? block.find("text") : block.end();
    if (block.is_object() && text != block.end() && text->is_string() &&
        text->get_ref<const std::string&>().starts_with("x-anthropic-"))
      continue;
    kept.push_back(block);
  }
  return read_text_blocks(kept, "system");
}

class MessageReader {
 public:
  explicit MessageReader(std::vector<ChatMessage>& out) : out_(out) {}

  void read(const ChatJson& value, const std::string& path) {
    const Fields message(value, path);
    const std::string role = message.required_text("role");
    const ChatJson* content = message.find("content");
    if (content == nullptr) refuse_field(message.path("content"), "missing; expected text or a list of blocks");
    if (role == "user")
      read_user(*content, message.path("content"));
    else if (role == "assistant")
      read_assistant(*content, message.path("content"));
    else if (role == "system")
      add(ChatRole::kSystem).content = read_text_blocks(*content, message.path("content"));
    else
      refuse_field(message.path("role"), "unknown; expected user or assistant, got " + in_quotes(role));
  }

 private:
  ChatMessage& add(ChatRole role) {
    out_.emplace_back();
    out_.back().role = role;
    return out_.back();
  }

  /// Tool results are messages of their own; the texts between them one message each.
  void read_user(const ChatJson& content, const std::string& path) {
    if (!content.is_array()) {
      add(ChatRole::kUser).content = read_text_blocks(content, path);
      return;
    }
    if (content.empty()) refuse_field(path, "empty; expected at least one block");
    ChatMessage* text = nullptr;
    for (size_t i = 0; i < content.size(); ++i) {
      const Fields block(content[i], path + "[" + std::to_string(i) + "]");
      const std::string type = block.required_text("type");
      if (type == "text") {
        if (text == nullptr) text = &add(ChatRole::kUser);
        text->content += (text->content.empty() ? "" : "\n") + block.required_text("text");
      } else if (type == "tool_result") {
        text = nullptr;
        ChatMessage& result = add(ChatRole::kTool);
        result.tool_call_id = block.required_text("tool_use_id");
        const ChatJson* inner = block.find("content");
        if (inner != nullptr) result.content = read_text_blocks(*inner, block.path("content"));
        if (block.flag("is_error").value_or(false)) result.content.insert(0, "Error: ");
      } else {
        refuse_field(block.path("type"), "unsupported; expected text or tool_result, got " + in_quotes(type));
      }
    }
  }

  void read_assistant(const ChatJson& content, const std::string& path) {
    ChatMessage& message = add(ChatRole::kAssistant);
    if (!content.is_array()) {
      message.content = read_text_blocks(content, path);
      return;
    }
    for (size_t i = 0; i < content.size(); ++i) {
      const Fields block(content[i], path + "[" + std::to_string(i) + "]");
      const std::string type = block.required_text("type");
      if (type == "text") {
        message.content += block.required_text("text");
      } else if (type == "thinking") {
        message.reasoning_content += block.required_text("thinking");
      } else if (type == "tool_use") {
        const std::optional<Fields> input = block.object("input");
        ChatToolCall call{block.required_text("id"), block.required_text("name"),
                          input ? to_chat_json(input->value()) : "{}"};
        if (call.name.empty()) refuse_field(block.path("name"), "empty; expected the name of a tool");
        message.tool_calls.push_back(std::move(call));
      } else if (type != "redacted_thinking") {
        refuse_field(block.path("type"), "unsupported; expected text, thinking or tool_use, got " + in_quotes(type));
      }
    }
  }

  std::vector<ChatMessage>& out_;
};

std::vector<ChatTool> read_tools(const ChatJson& list) {
  ChatJson converted = ChatJson::array();
  for (size_t i = 0; i < list.size(); ++i) {
    const Fields tool(list[i], "tools[" + std::to_string(i) + "]");
    if (const auto type = tool.text("type"); type && *type != "custom")
      refuse_field(tool.path("type"), "unsupported; expected custom, got " + in_quotes(*type));
    ChatJson function = {{"name", tool.required_text("name")}};
    if (const auto description = tool.text("description")) function["description"] = *description;
    if (const auto schema = tool.object("input_schema")) function["parameters"] = schema->value();
    ChatJson outer = {{"type", "function"}};
    outer["function"] = std::move(function);
    converted.push_back(std::move(outer));
  }
  return read_chat_tools(converted);
}

void read_choice(const Fields& choice, ChatQuestion& question) {
  const std::string type = choice.required_text("type");
  if (type == "any")
    question.tool_choice.kind = ToolChoice::Kind::kRequired;
  else if (type == "none")
    question.tool_choice.kind = ToolChoice::Kind::kNone;
  else if (type == "tool")
    question.tool_choice = {ToolChoice::Kind::kNamed, choice.required_text("name")};
  else if (type != "auto")
    refuse_field("tool_choice.type", "unknown; expected auto, any, tool or none, got " + in_quotes(type));
  question.parallel_calls = !choice.flag("disable_parallel_tool_use").value_or(false);
}

ChatQuestion read_question(const Fields& body) {
  check_model_name(body);
  ChatQuestion question;
  ChatConversation& chat = question.conversation;
  if (const ChatJson* system = body.find("system")) {
    ChatMessage message;
    message.role = ChatRole::kSystem;
    message.content = read_system(*system);
    if (!message.content.empty()) chat.messages.push_back(std::move(message));
  }
  const ChatJson* messages = body.list("messages");
  if (messages == nullptr || messages->empty()) refuse_field("messages", "expected at least one message");
  for (size_t i = 0; i < messages->size(); ++i)
    MessageReader(chat.messages).read((*messages)[i], "messages[" + std::to_string(i) + "]");
  // In this API an answer goes on where a last message of the assistant ends.
  ChatMessage& last = chat.messages.back();
  last.prefix = last.role == ChatRole::kAssistant && last.tool_calls.empty();
  if (const ChatJson* tools = body.list("tools"); tools != nullptr && !tools->empty()) chat.tools = read_tools(*tools);
  if (const auto choice = body.object("tool_choice")) read_choice(*choice, question);
  if (const auto output = body.object("output_config")) {
    if (const auto effort = output->text("effort")) set_effort(*effort, "output_config.effort", chat.options);
    if (const auto format = output->object("format")) question.format = read_answer_format(*format);
  }
  if (const auto thinking = body.object("thinking")) {
    const std::string type = thinking->required_text("type");
    if (type != "enabled" && type != "disabled" && type != "adaptive")
      refuse_field("thinking.type", "unknown; expected enabled, disabled or adaptive, got " + in_quotes(type));
    if (type != "adaptive") chat.options.thinking = type == "enabled";
  }
  return question;
}

MessagesCall read_call(Service& service, const ChatJson& json) {
  const Fields body(json, "");
  MessagesCall call;
  call.question = read_question(body);
  call.generate = read_generate_options(service, body, {"max_tokens"}, "stop_sequences");
  if (const auto metadata = body.object("metadata")) call.user = metadata->text("user_id").value_or("").substr(0, 256);
  call.stream = body.flag("stream").value_or(false);
  return call;
}

ChatJson usage_of(const AnswerRun& run, int64_t output_tokens) {
  return {{"input_tokens", run.prompt_tokens() - run.cached_tokens()},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", run.cached_tokens()},
          {"output_tokens", output_tokens}};
}

std::string stop_reason(const FinishedAnswer& answer) {
  if (answer.parsed.finish_reason == "tool_calls") return "tool_use";
  if (answer.parsed.finish_reason == "length") return "max_tokens";
  return answer.generation.stop ? "stop_sequence" : "end_turn";
}

ChatJson stop_sequence(const FinishedAnswer& answer) {
  return answer.generation.stop ? ChatJson(*answer.generation.stop) : ChatJson(nullptr);
}

ChatJson message_json(const Service& service, const std::string& id) {
  return {{"id", id},
          {"type", "message"},
          {"role", "assistant"},
          {"model", service.options.model_name},
          {"content", ChatJson::array()},
          {"stop_reason", nullptr},
          {"stop_sequence", nullptr}};
}

ChatJson whole_message(Service& service, const AnswerRun& run, const FinishedAnswer& answer) {
  ChatJson message = message_json(service, random_id("msg_"));
  ChatJson& content = message["content"];
  if (!answer.parsed.reasoning_content.empty())
    content.push_back({{"type", "thinking"}, {"thinking", answer.parsed.reasoning_content}, {"signature", ""}});
  if (!answer.parsed.content.empty()) content.push_back({{"type", "text"}, {"text", answer.parsed.content}});
  for (size_t i = 0; i < answer.parsed.tool_calls.size(); ++i) {
    const ParsedCall& call = answer.parsed.tool_calls[i];
    if (!call.complete) continue;
    ChatJson block = {{"type", "tool_use"}, {"id", answer.call_ids[i]}, {"name", call.name}};
    block["input"] = parse_chat_json(call.arguments, "arguments");
    content.push_back(std::move(block));
  }
  message["stop_reason"] = stop_reason(answer);
  message["stop_sequence"] = stop_sequence(answer);
  message["usage"] = usage_of(run, static_cast<int64_t>(answer.generation.token_ids.size()));
  return message;
}

/// The events of one message: blocks one after the other, each opened, filled and closed.
class MessageEvents final : public StreamListener {
 public:
  MessageEvents(Service& service, EventStream& stream, HttpExchange& exchange, const AnswerRun& run)
      : StreamListener(stream, exchange), service_(service), run_(run) {}

  void begin() {
    ChatJson message = message_json(service_, random_id("msg_"));
    message["usage"] = usage_of(run_, 0);
    ChatJson start = {{"type", "message_start"}};
    start["message"] = std::move(message);
    send(start);
    send({{"type", "ping"}});
  }

  void on_delta(size_t, const AnswerDelta& delta) override {
    const ChatEvent& event = delta.event;
    switch (event.kind) {
      case ChatEvent::Kind::kReasoning:
        open(Block::kThinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
        return add({{"type", "thinking_delta"}, {"thinking", event.text}});
      case ChatEvent::Kind::kContent:
        open(Block::kText, {{"type", "text"}, {"text", ""}});
        return add({{"type", "text_delta"}, {"text", event.text}});
      case ChatEvent::Kind::kCallStart:
        close();
        return open(Block::kCall,
                    {{"type", "tool_use"}, {"id", delta.call_id}, {"name", event.text}, {"input", ChatJson::object()}});
      case ChatEvent::Kind::kCallArguments: return add({{"type", "input_json_delta"}, {"partial_json", event.text}});
      case ChatEvent::Kind::kCallEnd: return close();
    }
  }

  void on_finished(size_t, const FinishedAnswer& answer) override {
    close();
    ChatJson end = {{"type", "message_delta"}};
    end["delta"] = {{"stop_reason", stop_reason(answer)}, {"stop_sequence", stop_sequence(answer)}};
    end["usage"] = usage_of(run_, static_cast<int64_t>(answer.generation.token_ids.size()));
    send(end);
    send({{"type", "message_stop"}});
  }

 private:
  enum class Block { kNone, kThinking, kText, kCall };

  void send(const ChatJson& event) { stream_.event(event.at("type").get<std::string>(), event); }

  void open(Block block, const ChatJson& empty) {
    if (block == open_) return;
    close();
    open_ = block;
    ChatJson event = {{"type", "content_block_start"}, {"index", index_}};
    event["content_block"] = empty;
    send(event);
  }

  void add(const ChatJson& delta) {
    ChatJson event = {{"type", "content_block_delta"}, {"index", index_}};
    event["delta"] = delta;
    send(event);
  }

  void close() {
    if (open_ == Block::kNone) return;
    open_ = Block::kNone;
    send({{"type", "content_block_stop"}, {"index", index_++}});
  }

  Service& service_;
  const AnswerRun& run_;
  Block open_ = Block::kNone;
  size_t index_ = 0;
};

}  // namespace

void anthropic_messages(Service& service, HttpExchange& exchange) {
  bool is_stream = false;
  AnswerRequest request = service.with_body(exchange.request(), [&](const ChatJson& json) {
    MessagesCall call = read_call(service, json);
    is_stream = call.stream;
    AnswerRequest answer = make_chat_answer(service, std::move(call.question), std::move(call.generate));
    answer.user = std::move(call.user);
    answer.call_id_prefix = "toolu_";
    return answer;
  });
  AnswerRun run(service, exchange.caller(), std::move(request));
  if (is_stream) {
    return stream_events(service, exchange, ApiStyle::kAnthropic, [&](EventStream& stream) {
      MessageEvents events(service, stream, exchange, run);
      events.begin();
      run.run(events);
    });
  }
  const std::vector<FinishedAnswer> answers = collect_answers(run, exchange);
  if (!answers.empty()) respond_json(exchange, whole_message(service, run, answers.front()));
}

void anthropic_count_tokens(Service& service, HttpExchange& exchange) {
  const int64_t n = service.with_body(exchange.request(), [&](const ChatJson& json) {
    return count_chat_tokens(service, read_question(Fields(json, "")));
  });
  respond_json(exchange, {{"input_tokens", n}});
}

}  // namespace fathom
