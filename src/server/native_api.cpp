// Endpoints about the model and the server itself.

#include "core/error.h"
#include "server/chat_question.h"
#include "server/endpoint.h"
#include "server/metrics.h"
#include "text/chat_format.h"
#include "text/utf8.h"

namespace fathom {
namespace {

constexpr std::string_view kModelPath = "/v1/models/";

ChatJson model_json(const Service& service) {
  const ModelInfo& info = service.engine.info();
  return {{"id", service.options.model_name},
          {"object", "model"},
          {"created", service.started_s},
          {"owned_by", "fathom"},
          {"context_length", service.engine.context()},
          {"max_model_len", service.engine.context()},
          {"meta",
           {{"architecture", info.architecture},
            {"name", info.name},
            {"type", info.type},
            {"size", info.size_bytes},
            {"n_ctx", service.engine.context()},
            {"n_ctx_train", info.trained_context},
            {"n_vocab", info.vocab_size},
            {"chat_format", name_of(service.engine.chat_generation())}}}};
}

}  // namespace

void list_models(Service& service, HttpExchange& exchange) {
  // Members of both APIs' lists: clients of either read only their own.
  ChatJson model = model_json(service);
  model["type"] = "model";
  model["display_name"] = service.options.model_name;
  ChatJson body = {{"object", "list"}};
  body["data"] = ChatJson::array({model});
  body["has_more"] = false;
  body["first_id"] = service.options.model_name;
  body["last_id"] = service.options.model_name;
  respond_json(exchange, body);
}

void describe_model(Service& service, HttpExchange& exchange) {
  if (exchange.request().path.substr(kModelPath.size()) != service.options.model_name)
    throw ApiError(404, "model: not found; this server has " + service.options.model_name);
  respond_json(exchange, model_json(service));
}

void tokenize(Service& service, HttpExchange& exchange) {
  const Tokenizer& tokenizer = service.engine.tokenizer();
  respond_json(exchange, service.with_body(exchange.request(), [&](const ChatJson& json) {
    const Fields body(json, "");
    const ChatJson* content = body.find("content");
    const std::string text = body.required_text(content != nullptr ? "content" : "prompt");
    const bool special = body.flag("parse_special").value_or(false), pieces = body.flag("with_pieces").value_or(false);
    std::vector<int32_t> ids = tokenizer.encode(text, special);
    if (body.flag("add_special").value_or(false) && tokenizer.vocab().add_bos())
      ids.insert(ids.begin(), tokenizer.vocab().bos());
    ChatJson list = ChatJson::array();
    for (const int32_t id : ids) {
      if (pieces)
        list.push_back({{"id", id}, {"piece", to_valid_utf8(tokenizer.vocab().bytes(id))}});
      else
        list.push_back(id);
    }
    ChatJson answer = {{"count", ids.size()}};
    answer["tokens"] = std::move(list);
    return answer;
  }));
}

void detokenize(Service& service, HttpExchange& exchange) {
  const Tokenizer& tokenizer = service.engine.tokenizer();
  respond_json(exchange, service.with_body(exchange.request(), [&](const ChatJson& json) {
    const ChatJson* list = Fields(json, "").list("tokens");
    if (list == nullptr) refuse_field("tokens", "missing; expected a list of token ids");
    std::vector<int32_t> ids;
    for (const ChatJson& id : *list)
      ids.push_back(static_cast<int32_t>(
          read_integer(id, "tokens[" + std::to_string(ids.size()) + "]", 0, service.engine.info().vocab_size - 1)));
    const std::string text = to_valid_utf8(tokenizer.decode(ids));
    ChatJson answer = {{"content", text}};
    answer["prompt"] = text;  // vLLM's name for it
    return answer;
  }));
}

void apply_template(Service& service, HttpExchange& exchange) {
  respond_json(exchange, service.with_body(exchange.request(), [&](const ChatJson& json) {
    const ChatConversation chat = read_chat_conversation(json);
    ChatJson answer = {
        {"prompt", join_parts(render_chat(service.engine.chat_generation(), chat.messages, chat.tools, chat.options))}};
    return answer;
  }));
}

void props(Service& service, HttpExchange& exchange) {
  const SamplingParams& sampling = service.options.sampling;
  const std::string* chat_template = service.engine.metadata().text("tokenizer.chat_template");
  ChatJson defaults = {{"temperature", sampling.temperature},
                       {"top_k", sampling.top_k},
                       {"top_p", sampling.top_p},
                       {"min_p", sampling.min_p},
                       {"repeat_penalty", sampling.repeat_penalty},
                       {"frequency_penalty", sampling.frequency_penalty},
                       {"presence_penalty", sampling.presence_penalty}};
  ChatJson settings = {{"n_ctx", service.engine.context()}};
  settings["params"] = std::move(defaults);
  ChatJson body = {{"default_generation_settings", std::move(settings)}};
  body["total_slots"] = service.options.max_choices;
  body["model_alias"] = service.options.model_name;
  body["chat_format"] = name_of(service.engine.chat_generation());
  body["chat_template"] = chat_template != nullptr ? ChatJson(*chat_template) : ChatJson("");
  body["backend"] = service.engine.backend_description();
  body["build_info"] = service.options.fingerprint;
  body["model"] = model_json(service);
  respond_json(exchange, body);
}

void metrics(Service& service, HttpExchange& exchange) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = format_metrics(service.scheduler.stats(), service.options.model_name);
  exchange.respond(response);
}

}  // namespace fathom
