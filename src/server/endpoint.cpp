#include "server/endpoint.h"

#include <algorithm>
#include <chrono>

#include "text/utf8.h"

namespace fathom {
namespace {

class Collector final : public AnswerListener {
 public:
  Collector(HttpExchange& exchange, size_t n) : answers(n), exchange_(exchange) {}
  void on_delta(size_t, const AnswerDelta&) override {}
  void on_finished(size_t choice_idx, const FinishedAnswer& answer) override { answers[choice_idx] = answer; }
  void on_turn() override {}
  bool gone() override { return exchange_.client_gone(); }

  std::vector<FinishedAnswer> answers;

 private:
  HttpExchange& exchange_;
};

ChatJson token_json(const Tokenizer& tokenizer, int32_t id, float logprob) {
  const std::string_view bytes = tokenizer.vocab().bytes(id);
  ChatJson token;
  token["token"] = to_valid_utf8(bytes);
  token["logprob"] = finite_logprob(logprob);
  ChatJson list = ChatJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  token["bytes"] = std::move(list);
  return token;
}

}  // namespace

void respond_json(HttpExchange& exchange, const ChatJson& body) {
  HttpResponse response;
  response.body = dump_json(body);
  exchange.respond(response);
}

std::vector<FinishedAnswer> collect_answers(AnswerRun& run, HttpExchange& exchange) {
  Collector collector(exchange, run.n_choices());
  if (run.run(collector) == AnswerRun::End::kClientGone) return {};
  return std::move(collector.answers);
}

void stream_events(Service& service, HttpExchange& exchange, ApiStyle style,
                   const std::function<void(EventStream&)>& write) {
  // Proxies that gather a response before they pass it on are asked not to.
  if (!exchange.begin_stream("text/event-stream; charset=utf-8",
                             {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}))
    return;
  EventStream stream([&](std::string_view bytes) { return exchange.write(bytes); }, service.options.keep_alive);
  try {
    write(stream);
  } catch (...) {
    const ApiError error = current_error();
    stream.event(style == ApiStyle::kAnthropic ? "error" : "", error_body(error, style));
  }
}

int64_t unix_time() { return std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()); }

ChatJson usage_json(const AnswerRun& run, int64_t completion_tokens, int64_t reasoning_tokens) {
  const int64_t prompt = run.prompt_tokens(), cached = run.cached_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt + completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached}}},
          {"completion_tokens_details", {{"reasoning_tokens", reasoning_tokens}}},
          {"prompt_cache_hit_tokens", cached},
          {"prompt_cache_miss_tokens", prompt - cached}};
}

ChatJson timings_json(const Generation& generation) {
  return {{"cache_n", generation.cached_tokens},
          {"prompt_n", generation.prompt_tokens - generation.cached_tokens},
          {"prompt_ms", generation.prompt_ms},
          {"prompt_per_second", generation.prompt_tok_s()},
          {"predicted_n", generation.token_ids.size()},
          {"predicted_ms", generation.decode_ms},
          {"predicted_per_second", generation.decode_tok_s()}};
}

double finite_logprob(float logprob) { return std::max(static_cast<double>(logprob), -9999.0); }

ChatJson logprobs_json(const Tokenizer& tokenizer, std::span<const TokenLogprob> tokens) {
  ChatJson list = ChatJson::array();
  for (const TokenLogprob& token : tokens) {
    ChatJson entry = token_json(tokenizer, token.id, token.logprob);
    ChatJson top = ChatJson::array();
    for (const TokenChoice& choice : token.top) top.push_back(token_json(tokenizer, choice.id, choice.logprob));
    entry["top_logprobs"] = std::move(top);
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace fathom
