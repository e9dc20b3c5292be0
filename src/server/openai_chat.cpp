// POST /v1/chat/completions. Source: platform.openai.com/docs/api-reference/chat and api-docs.deepseek.com.
#include "core/error.h"
#include "server/chat_question.h"
#include "server/endpoint.h"
#include "server/generation_fields.h"

namespace fathom {
namespace {

struct ChatCall {
  AnswerRequest answer;
  bool stream = false;
  bool include_usage = false;
};

void read_thinking(const Fields& body, ChatOptions& options) {
  // Template arguments of other servers first, so that the API's own fields overrule them.
  if (const std::optional<Fields> arguments = body.object("chat_template_kwargs")) {
    for (const std::string_view name : {"thinking", "enable_thinking"}) {
      if (const std::optional<bool> flag = arguments->flag(name)) options.thinking = flag;
    }
    if (const std::optional<std::string> effort = arguments->text("reasoning_effort"))
      set_effort(*effort, "chat_template_kwargs.reasoning_effort", options);
  }
  if (const std::optional<std::string> effort = body.text("reasoning_effort"))
    set_effort(*effort, "reasoning_effort", options);
  if (const std::optional<Fields> thinking = body.object("thinking")) {
    const std::string type = thinking->required_text("type");
    if (type != "enabled" && type != "disabled" && type != "auto")
      refuse_field("thinking.type", "unknown; expected enabled, disabled or auto");
    if (type != "auto") options.thinking = type == "enabled";
  }
}

ChatCall read_call(Service& service, const ChatJson& json) {
  const Fields body(json, "");
  check_model_name(body);
  ChatQuestion question;
  const ChatJson* messages = body.find("messages");
  if (messages == nullptr) refuse_field("messages", "missing; expected a list");
  question.conversation.messages = read_chat_messages(*messages);
  if (const ChatJson* tools = body.list("tools"); tools != nullptr && !tools->empty())
    question.conversation.tools = read_chat_tools(*tools);
  read_thinking(body, question.conversation.options);
  question.tool_choice = read_tool_choice(body, "tool_choice");
  question.parallel_calls = body.flag("parallel_tool_calls").value_or(true);
  if (const std::optional<Fields> format = body.object("response_format"))
    question.format = read_answer_format(*format);

  GenerateOptions generate = read_generate_options(service, body, {"max_completion_tokens", "max_tokens"}, "stop");
  const int n = read_n(service, body);
  const bool logprobs = body.flag("logprobs").value_or(false);
  const std::optional<int64_t> top_logprobs = body.integer("top_logprobs", 0, kMaxTopLogprobs);
  if (top_logprobs && !logprobs) refuse_field("top_logprobs", "needs logprobs to be true");

  ChatCall call;
  call.stream = body.flag("stream").value_or(false);
  if (const std::optional<Fields> options = body.object("stream_options"))
    call.include_usage = options->flag("include_usage").value_or(false);
  const std::string user = read_user(body);
  const bool use_cache = body.flag("cache_prompt").value_or(true);
  call.answer = make_chat_answer(service, std::move(question), std::move(generate));
  call.answer.n = n;
  call.answer.logprobs = logprobs;
  call.answer.top_logprobs = static_cast<int>(top_logprobs.value_or(0));
  call.answer.user = user;
  call.answer.use_cache = use_cache;
  return call;
}

ChatJson call_json(const std::string& id, const std::string& name, const std::string& arguments) {
  return {{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}};
}

ChatJson message_json(const FinishedAnswer& answer) {
  ChatJson message = {{"role", "assistant"}};
  ChatJson calls = ChatJson::array();
  for (size_t i = 0; i < answer.parsed.tool_calls.size(); ++i) {
    const ParsedCall& call = answer.parsed.tool_calls[i];
    if (call.complete) calls.push_back(call_json(answer.call_ids[i], call.name, call.arguments));
  }
  message["content"] =
      answer.parsed.content.empty() && !calls.empty() ? ChatJson(nullptr) : ChatJson(answer.parsed.content);
  if (!answer.parsed.reasoning_content.empty()) message["reasoning_content"] = answer.parsed.reasoning_content;
  message["refusal"] = nullptr;
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  return message;
}

ChatJson choice_logprobs(const Service& service, std::span<const TokenLogprob> tokens) {
  return {{"content", logprobs_json(service.engine.tokenizer(), tokens)}, {"refusal", nullptr}};
}

/// The chunks of a stream: all with one id.
class Chunks final : public StreamListener {
 public:
  Chunks(Service& service, EventStream& stream, HttpExchange& exchange, const AnswerRun& run, bool logprobs, bool usage)
      : StreamListener(stream, exchange),
        service_(service),
        run_(run),
        logprobs_(logprobs),
        include_usage_(usage),
        id_(random_id("chatcmpl-")),
        created_(unix_time()) {}

  void begin() {
    for (size_t i = 0; i < run_.n_choices(); ++i) send(i, {{"role", "assistant"}, {"content", nullptr}}, nullptr, {});
  }

  void on_delta(size_t choice_idx, const AnswerDelta& delta) override {
    const ChatEvent& event = delta.event;
    switch (event.kind) {
      case ChatEvent::Kind::kReasoning: return send(choice_idx, {{"reasoning_content", event.text}}, nullptr, {});
      case ChatEvent::Kind::kContent: return send(choice_idx, {{"content", event.text}}, nullptr, delta.logprobs);
      case ChatEvent::Kind::kCallStart: {
        ChatJson call = call_json(delta.call_id, event.text, "");
        ChatJson indexed = {{"index", event.call_idx}};
        indexed.update(call);
        return send(choice_idx, {{"tool_calls", ChatJson::array({indexed})}}, nullptr, {});
      }
      case ChatEvent::Kind::kCallArguments: {
        const ChatJson call = {{"index", event.call_idx}, {"function", {{"arguments", event.text}}}};
        return send(choice_idx, {{"tool_calls", ChatJson::array({call})}}, nullptr, {});
      }
      case ChatEvent::Kind::kCallEnd: return;
    }
  }

  void on_finished(size_t choice_idx, const FinishedAnswer& answer) override {
    completion_tokens_ += static_cast<int64_t>(answer.generation.token_ids.size());
    reasoning_tokens_ += answer.reasoning_tokens;
    ChatJson chunk = this->chunk();
    chunk["choices"].push_back({{"index", choice_idx},
                                {"delta", ChatJson::object()},
                                {"logprobs", nullptr},
                                {"finish_reason", answer.parsed.finish_reason}});
    chunk["timings"] = timings_json(answer.generation);
    stream_.data(chunk);
  }

  void end() {
    if (include_usage_) {
      ChatJson chunk = this->chunk();
      chunk["usage"] = usage_json(run_, completion_tokens_, reasoning_tokens_);
      stream_.data(chunk);
    }
    stream_.raw("[DONE]");
  }

 private:
  ChatJson chunk() const {
    ChatJson chunk = {{"id", id_},
                      {"object", "chat.completion.chunk"},
                      {"created", created_},
                      {"model", service_.options.model_name},
                      {"system_fingerprint", service_.options.fingerprint}};
    chunk["choices"] = ChatJson::array();
    if (include_usage_) chunk["usage"] = nullptr;
    return chunk;
  }

  void send(size_t choice_idx, ChatJson delta, const ChatJson& finish_reason, std::span<const TokenLogprob> tokens) {
    ChatJson chunk = this->chunk();
    ChatJson choice = {{"index", choice_idx}, {"delta", std::move(delta)}};
    choice["logprobs"] = logprobs_ && !tokens.empty() ? choice_logprobs(service_, tokens) : ChatJson(nullptr);
    choice["finish_reason"] = finish_reason;
    chunk["choices"].push_back(std::move(choice));
    stream_.data(chunk);
  }

  Service& service_;
  const AnswerRun& run_;
  const bool logprobs_, include_usage_;
  const std::string id_;
  const int64_t created_;
  int64_t completion_tokens_ = 0, reasoning_tokens_ = 0;
};

ChatJson completion_json(Service& service, const AnswerRun& run, const std::vector<FinishedAnswer>& answers,
                         bool logprobs) {
  ChatJson body = {{"id", random_id("chatcmpl-")},
                   {"object", "chat.completion"},
                   {"created", unix_time()},
                   {"model", service.options.model_name},
                   {"system_fingerprint", service.options.fingerprint}};
  ChatJson choices = ChatJson::array();
  int64_t tokens = 0, reasoning = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const FinishedAnswer& answer = answers[i];
    ChatJson choice = {{"index", i}, {"message", message_json(answer)}};
    choice["logprobs"] = logprobs ? choice_logprobs(service, answer.logprobs) : ChatJson(nullptr);
    choice["finish_reason"] = answer.parsed.finish_reason;
    choices.push_back(std::move(choice));
    tokens += static_cast<int64_t>(answer.generation.token_ids.size());
    reasoning += answer.reasoning_tokens;
  }
  body["choices"] = std::move(choices);
  body["usage"] = usage_json(run, tokens, reasoning);
  body["timings"] = timings_json(answers.front().generation);
  return body;
}

}  // namespace

void chat_completions(Service& service, HttpExchange& exchange) {
  ChatCall call = service.with_body(exchange.request(), [&](const ChatJson& json) { return read_call(service, json); });
  const bool logprobs = call.answer.logprobs;
  AnswerRun run(service, exchange.caller(), std::move(call.answer));
  if (call.stream) {
    return stream_events(service, exchange, ApiStyle::kOpenAi, [&](EventStream& stream) {
      Chunks chunks(service, stream, exchange, run, logprobs, call.include_usage);
      chunks.begin();
      if (run.run(chunks) == AnswerRun::End::kFinished) chunks.end();
    });
  }
  const std::vector<FinishedAnswer> answers = collect_answers(run, exchange);
  if (!answers.empty()) respond_json(exchange, completion_json(service, run, answers, logprobs));
}

}  // namespace fathom
