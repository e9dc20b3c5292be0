// POST /v1/completions: a raw text goes on. Source: platform.openai.com/docs/api-reference/completions.
#include <algorithm>

#include "core/error.h"
#include "server/endpoint.h"
#include "server/generation_fields.h"
#include "text/utf8.h"

namespace fathom {
namespace {

constexpr size_t kMaxPrompts = 64;

struct TextCall {
  AnswerRequest answer;
  std::vector<std::string> echo;  ///< what stands before each choice's text; empty texts: nothing
  bool stream = false;
  bool include_usage = false;
};

std::vector<int32_t> with_bos(const Service& service, std::vector<int32_t> ids) {
  const Vocab& vocab = service.engine.tokenizer().vocab();
  if (vocab.add_bos() && (ids.empty() || ids.front() != vocab.bos())) ids.insert(ids.begin(), vocab.bos());
  return ids;
}

std::vector<int32_t> read_ids(const Service& service, const ChatJson& list, const std::string& path) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const ChatJson& id : list) {
    ids.push_back(static_cast<int32_t>(
        read_integer(id, path + "[" + std::to_string(ids.size()) + "]", 0, service.engine.info().vocab_size - 1)));
  }
  if (ids.empty()) refuse_field(path, "empty; expected at least one token");
  return ids;
}

/// Text before and behind a gap, in the markers that the coder models fill gaps with.
std::vector<int32_t> fill_in_prompt(const Service& service, const std::string& before, const std::string& behind) {
  const Tokenizer& tokenizer = service.engine.tokenizer();
  const std::vector<PromptPart> parts = {
      {"<｜fim▁begin｜>", true}, {before, false}, {"<｜fim▁hole｜>", true}, {behind, false}, {"<｜fim▁end｜>", true}};
  for (const PromptPart& part : parts) {
    if (part.special && !tokenizer.vocab().find(part.text))
      refuse_field("suffix", "not possible with this model; its vocabulary has no " + part.text);
  }
  return tokenizer.encode(parts);
}

/// Fills prompts and echo texts.
void read_prompts(Service& service, const Fields& body, TextCall& call) {
  const Tokenizer& tokenizer = service.engine.tokenizer();
  const bool echo = body.flag("echo").value_or(false);
  const std::optional<std::string> suffix = body.text("suffix");
  const auto add_text = [&](const std::string& text) {
    // The text is the caller's own prompt: special tokens spelled in it are meant.
    call.answer.prompts.push_back(with_bos(
        service, suffix && !suffix->empty() ? fill_in_prompt(service, text, *suffix) : tokenizer.encode(text, true)));
    call.echo.push_back(echo ? text : "");
  };
  const auto add_ids = [&](const ChatJson& list, const std::string& path) {
    if (suffix && !suffix->empty()) refuse_field("suffix", "not possible beside token ids");
    call.answer.prompts.push_back(read_ids(service, list, path));
    call.echo.push_back(echo ? to_valid_utf8(tokenizer.decode(call.answer.prompts.back(), ControlTokens::kHide)) : "");
  };
  const ChatJson* prompt = body.find("prompt");
  if (prompt == nullptr) refuse_field("prompt", "missing; expected a text, a list of texts or token ids");
  if (prompt->is_string()) return add_text(prompt->get<std::string>());
  if (!prompt->is_array() || prompt->empty()) refuse_field("prompt", "expected a text, or a list that is not empty");
  if (prompt->front().is_number()) return add_ids(*prompt, "prompt");
  if (prompt->size() > kMaxPrompts)
    refuse_field("prompt", "too many; expected at most " + std::to_string(kMaxPrompts) + ", got " +
                               std::to_string(prompt->size()));
  for (size_t i = 0; i < prompt->size(); ++i) {
    const ChatJson& one = (*prompt)[i];
    const std::string path = "prompt[" + std::to_string(i) + "]";
    if (one.is_string())
      add_text(one.get<std::string>());
    else if (one.is_array())
      add_ids(one, path);
    else
      refuse_field(path, "wrong kind; expected a text or a list of token ids, got " + std::string(kind_of(one)));
  }
}

TextCall read_call(Service& service, const ChatJson& json) {
  const Fields body(json, "");
  check_model_name(body);
  TextCall call;
  read_prompts(service, body, call);
  call.answer.is_chat = false;
  call.answer.options =
      read_generate_options(service, body, {"max_tokens", "max_completion_tokens", "n_predict"}, "stop");
  if (!body.find("max_tokens") && !body.find("max_completion_tokens") && !body.find("n_predict"))
    call.answer.options.max_tokens = 16;  // the API's own default
  call.answer.n = read_n(service, body);
  if (const auto best = body.integer("best_of", 1, 1024); best && *best != call.answer.n)
    refuse_field("best_of", "not supported; expected the same as n");
  if (const auto logprobs = body.integer("logprobs", 0, kMaxTopLogprobs)) {
    call.answer.logprobs = true;
    call.answer.top_logprobs = static_cast<int>(*logprobs);
    if (body.flag("echo").value_or(false))
      refuse_field("echo", "not supported together with logprobs: those of a prompt are not kept");
  }
  call.stream = body.flag("stream").value_or(false);
  if (const std::optional<Fields> options = body.object("stream_options"))
    call.include_usage = options->flag("include_usage").value_or(false);
  call.answer.user = read_user(body);
  call.answer.use_cache = body.flag("cache_prompt").value_or(true);
  return call;
}

/// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offsets in characters from `offset` on.
ChatJson legacy_logprobs(const Service& service, std::span<const TokenLogprob> tokens, size_t& offset) {
  const auto text_of = [&](int32_t id) { return to_valid_utf8(service.engine.tokenizer().vocab().bytes(id)); };
  ChatJson texts = ChatJson::array(), values = ChatJson::array(), tops = ChatJson::array(), offsets = ChatJson::array();
  for (const TokenLogprob& token : tokens) {
    const std::string text = text_of(token.id);
    texts.push_back(text);
    values.push_back(finite_logprob(token.logprob));
    ChatJson top = ChatJson::object();
    for (const TokenChoice& choice : token.top) top[text_of(choice.id)] = finite_logprob(choice.logprob);
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

ChatJson head_json(const Service& service, const std::string& id, int64_t created) {
  return {{"id", id},
          {"object", "text_completion"},
          {"created", created},
          {"model", service.options.model_name},
          {"system_fingerprint", service.options.fingerprint},
          {"choices", ChatJson::array()}};
}

class TextChunks final : public StreamListener {
 public:
  TextChunks(Service& service, EventStream& stream, HttpExchange& exchange, const AnswerRun& run, const TextCall& call,
             int n, bool logprobs)
      : StreamListener(stream, exchange),
        service_(service),
        run_(run),
        call_(call),
        n_(n),
        logprobs_(logprobs),
        id_(random_id("cmpl-")),
        created_(unix_time()),
        offsets_(run.n_choices()) {}

  void begin() {
    for (size_t i = 0; i < run_.n_choices(); ++i) {
      const std::string& echo = call_.echo[i / static_cast<size_t>(n_)];
      if (!echo.empty()) send(i, echo, nullptr, nullptr);
    }
  }
  void on_delta(size_t choice_idx, const AnswerDelta& delta) override {
    send(choice_idx, delta.event.text,
         logprobs_ ? legacy_logprobs(service_, delta.logprobs, offsets_[choice_idx]) : ChatJson(nullptr), nullptr);
  }
  void on_finished(size_t choice_idx, const FinishedAnswer& answer) override {
    completion_tokens_ += static_cast<int64_t>(answer.generation.token_ids.size());
    send(choice_idx, "", nullptr, answer.parsed.finish_reason);
  }
  void end() {
    if (call_.include_usage) {
      ChatJson chunk = head_json(service_, id_, created_);
      chunk["usage"] = usage_json(run_, completion_tokens_, 0);
      stream_.data(chunk);
    }
    stream_.raw("[DONE]");
  }

 private:
  void send(size_t choice_idx, const std::string& text, ChatJson logprobs, ChatJson finish_reason) {
    ChatJson chunk = head_json(service_, id_, created_);
    ChatJson choice = {{"index", choice_idx}, {"text", text}};
    choice["logprobs"] = std::move(logprobs);
    choice["finish_reason"] = std::move(finish_reason);
    chunk["choices"].push_back(std::move(choice));
    if (call_.include_usage) chunk["usage"] = nullptr;
    stream_.data(chunk);
  }

  Service& service_;
  const AnswerRun& run_;
  const TextCall& call_;
  const int n_;
  const bool logprobs_;
  const std::string id_;
  const int64_t created_;
  std::vector<size_t> offsets_;
  int64_t completion_tokens_ = 0;
};

}  // namespace

void completions(Service& service, HttpExchange& exchange) {
  TextCall call = service.with_body(exchange.request(), [&](const ChatJson& json) { return read_call(service, json); });
  const int n = call.answer.n;
  const bool logprobs = call.answer.logprobs;
  AnswerRun run(service, exchange.caller(), std::move(call.answer));
  if (call.stream) {
    return stream_events(service, exchange, ApiStyle::kOpenAi, [&](EventStream& stream) {
      TextChunks chunks(service, stream, exchange, run, call, n, logprobs);
      chunks.begin();
      if (run.run(chunks) == AnswerRun::End::kFinished) chunks.end();
    });
  }
  const std::vector<FinishedAnswer> answers = collect_answers(run, exchange);
  if (answers.empty()) return;
  ChatJson body = head_json(service, random_id("cmpl-"), unix_time());
  int64_t tokens = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    size_t offset = 0;
    ChatJson choice = {{"index", i}, {"text", call.echo[i / static_cast<size_t>(n)] + answers[i].parsed.content}};
    choice["logprobs"] = logprobs ? legacy_logprobs(service, answers[i].logprobs, offset) : ChatJson(nullptr);
    choice["finish_reason"] = answers[i].parsed.finish_reason;
    body["choices"].push_back(std::move(choice));
    tokens += static_cast<int64_t>(answers[i].generation.token_ids.size());
  }
  body["usage"] = usage_json(run, tokens, 0);
  body["timings"] = timings_json(answers.front().generation);
  respond_json(exchange, body);
}

}  // namespace fathom
