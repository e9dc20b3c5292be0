// What the endpoints share: how an answer is collected or streamed, and the objects that several of them send.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "server/answer_run.h"
#include "server/api_error.h"
#include "server/event_stream.h"
#include "server/http_server.h"
#include "server/service.h"

namespace fathom {

/// Answers one request. What it throws before it answered becomes an error response in the route's style.
using Endpoint = void (*)(Service&, HttpExchange&);

void respond_json(HttpExchange& exchange, const ChatJson& body);

/// Runs to the end without a word. Empty if the client went away.
std::vector<FinishedAnswer> collect_answers(AnswerRun& run, HttpExchange& exchange);

/// Sends the head of an event stream and calls `write`; an exception of it becomes an error event, the last one of the
/// stream.
void stream_events(Service& service, HttpExchange& exchange, ApiStyle style,
                   const std::function<void(EventStream&)>& write);

/// A listener that writes to an event stream: comments while nothing is written, gone when the client is.
class StreamListener : public AnswerListener {
 public:
  StreamListener(EventStream& stream, HttpExchange& exchange) : stream_(stream), exchange_(exchange) {}
  void on_turn() override { stream_.tick(); }
  bool gone() override { return stream_.broken() || exchange_.client_gone(); }

 protected:
  EventStream& stream_;

 private:
  HttpExchange& exchange_;
};

int64_t unix_time();

/// OpenAI's usage object, with DeepSeek's cache counts.
ChatJson usage_json(const AnswerRun& run, int64_t completion_tokens, int64_t reasoning_tokens);
/// Speeds of one answer, as llama.cpp's server reports them.
ChatJson timings_json(const Generation& generation);
/// [{"token", "logprob", "bytes", "top_logprobs"}]
ChatJson logprobs_json(const Tokenizer& tokenizer, std::span<const TokenLogprob> tokens);
/// JSON has no infinity: -9999 stands for it, as in the OpenAI API.
double finite_logprob(float logprob);

// The endpoints.
void chat_completions(Service& service, HttpExchange& exchange);
void completions(Service& service, HttpExchange& exchange);
void responses(Service& service, HttpExchange& exchange);
void anthropic_messages(Service& service, HttpExchange& exchange);
void anthropic_count_tokens(Service& service, HttpExchange& exchange);
void list_models(Service& service, HttpExchange& exchange);
void describe_model(Service& service, HttpExchange& exchange);
void tokenize(Service& service, HttpExchange& exchange);
void detokenize(Service& service, HttpExchange& exchange);
void apply_template(Service& service, HttpExchange& exchange);
void props(Service& service, HttpExchange& exchange);
void metrics(Service& service, HttpExchange& exchange);

}  // namespace fathom
