#include "server/answer_run.h"

#include <algorithm>
#include <optional>
#include <random>

#include "core/error.h"
#include "server/api_error.h"

namespace fathom {
namespace {

std::mt19937_64& random_engine() {
  thread_local std::mt19937_64 engine{(uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()};
  return engine;
}

/// Finds which tokens wrote a piece of content: the parser drops markers and newlines from the text, and gives out some
/// of it later than its tokens came.
class LogprobTracker {
 public:
  explicit LogprobTracker(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add_token(const TokenEvent& event, bool control_shown) {
    text_ += event.text;
    if (!event.id) return;
    const bool hidden = tokenizer_.vocab().is_end(*event.id) ||
                        (!control_shown && tokenizer_.vocab().type(*event.id) == TokenType::kControl);
    const size_t begin = tokens_.empty() ? 0 : tokens_.back().end;
    tokens_.push_back({begin,
                       begin + (hidden ? 0 : tokenizer_.vocab().bytes(*event.id).size()),
                       {*event.id, event.logprob, event.top_logprobs}});
  }

  /// The tokens of the next piece that the parser gave out.
  std::vector<TokenLogprob> take(std::string_view piece) {
    const size_t found = text_.find(piece, position_);
    const size_t begin = found == std::string::npos ? position_ : found;
    position_ = std::min(begin + piece.size(), text_.size());
    std::vector<TokenLogprob> taken;
    for (; next_ < tokens_.size() && tokens_[next_].begin < position_; ++next_) {
      if (tokens_[next_].end > begin) taken.push_back(tokens_[next_].logprob);
    }
    return taken;
  }

 private:
  struct Token {
    size_t begin, end;  // in text_
    TokenLogprob logprob;
  };
  const Tokenizer& tokenizer_;
  std::string text_;
  size_t position_ = 0, next_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace

std::string random_id(std::string_view prefix) {
  constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::string id(prefix);
  std::uniform_int_distribution<size_t> any(0, kLetters.size() - 1);
  for (int i = 0; i < 24; ++i) id += kLetters[any(random_engine())];
  return id;
}

uint64_t random_seed() { return random_engine()(); }

class AnswerRun::Choice {
 public:
  Choice(AnswerRun& run, size_t index, RequestHandle handle)
      : run_(run),
        request_(run.request_),
        index_(index),
        handle_(std::move(handle)),
        in_reasoning_(request_.is_chat && request_.parser.starts_in_reasoning) {
    if (request_.is_chat) {
      parser_.emplace(run.service_.engine.chat_generation(), request_.parser);
      opening_ = parser_->feed(request_.opening);
    }
    if (request_.logprobs) tracker_.emplace(run.service_.engine.tokenizer());
  }

  bool finished() const { return finished_; }
  int64_t cached_tokens() const { return cached_tokens_; }

  /// Waits for an event until `timeout`. Whether one came.
  bool pump(std::chrono::milliseconds timeout, AnswerListener& listener) {
    if (!opening_.empty()) give(std::exchange(opening_, {}), listener);
    std::optional<Event> event = handle_.next(timeout);
    if (!event) return false;
    if (auto* started = std::get_if<StartedEvent>(&*event)) {
      cached_tokens_ = started->cached_tokens;
    } else if (auto* token = std::get_if<TokenEvent>(&*event)) {
      on_token(*token, listener);
    } else if (auto* done = std::get_if<FinishedEvent>(&*event)) {
      on_finished(std::move(done->generation), listener);
    } else if (auto* failed = std::get_if<FailedEvent>(&*event)) {
      throw failed->error;
    }
    return true;
  }

 private:
  void on_token(const TokenEvent& token, AnswerListener& listener) {
    if (cut_) return;
    if (in_reasoning_ && token.id) ++answer_.reasoning_tokens;
    if (tracker_) tracker_->add_token(token, request_.options.show_control_tokens);
    if (parser_) {
      give(parser_->feed(token.text), listener);
    } else if (!token.text.empty()) {
      answer_.parsed.content += token.text;
      give({{ChatEvent::Kind::kContent, token.text}}, listener);
    }
  }

  void give(std::vector<ChatEvent> events, AnswerListener& listener) {
    for (ChatEvent& event : events) {
      if (cut_) return;
      AnswerDelta delta{std::move(event), {}, {}};
      in_reasoning_ = delta.event.kind == ChatEvent::Kind::kReasoning;
      if (delta.event.kind == ChatEvent::Kind::kCallStart) {
        answer_.call_ids.push_back(random_id(request_.call_id_prefix));
        delta.call_id = answer_.call_ids.back();
      }
      if (tracker_ &&
          (delta.event.kind == ChatEvent::Kind::kContent || delta.event.kind == ChatEvent::Kind::kReasoning)) {
        std::vector<TokenLogprob> tokens = tracker_->take(delta.event.text);
        if (delta.event.kind == ChatEvent::Kind::kContent) {
          answer_.logprobs.insert(answer_.logprobs.end(), tokens.begin(), tokens.end());
          delta.logprobs = std::move(tokens);
        }
      }
      listener.on_delta(index_, delta);
      if (delta.event.kind == ChatEvent::Kind::kCallEnd && delta.event.complete && !request_.parallel_calls) {
        cut_ = true;
        handle_.cancel();
      }
    }
  }

  void on_finished(Generation generation, AnswerListener& listener) {
    finished_ = true;
    cached_tokens_ = generation.cached_tokens;
    if (generation.finish == FinishReason::kInterrupted && !cut_) {
      ApiError stopped(503, "server: it shuts down, and this answer could not be finished in time");
      stopped.retry_after_s = 5;
      throw stopped;
    }
    const std::string_view reason = cut_ ? "stop" : name_of(generation.finish);
    answer_.hit_end_of_text = reason == "stop" && !generation.stop;
    if (parser_) {
      std::vector<ChatEvent> rest = parser_->finish(reason);
      give(std::move(rest), listener);
      answer_.parsed = parser_->result();
      if (cut_)
        answer_.parsed.tool_calls.resize(std::min<size_t>(answer_.parsed.tool_calls.size(), answer_.call_ids.size()));
    } else {
      answer_.parsed.finish_reason = reason;
    }
    answer_.generation = std::move(generation);
    for (size_t i = 0; i < answer_.parsed.tool_calls.size() && i < answer_.call_ids.size(); ++i) {
      const ParsedCall& call = answer_.parsed.tool_calls[i];
      if (call.complete)
        run_.service_.replay.remember({answer_.call_ids[i], call.name, call.arguments},
                                      answer_.parsed.reasoning_content);
    }
    listener.on_finished(index_, answer_);
  }

  AnswerRun& run_;
  const AnswerRequest& request_;
  const size_t index_;
  RequestHandle handle_;
  std::optional<ChatParser> parser_;  // chats only
  std::vector<ChatEvent> opening_;    // what the parser made of the prompt's end, not given out yet
  std::optional<LogprobTracker> tracker_;
  bool in_reasoning_;
  bool cut_ = false;  // ended by us behind a call
  bool finished_ = false;
  int64_t cached_tokens_ = 0;
  FinishedAnswer answer_;
};

AnswerRun::AnswerRun(Service& service, const Caller& caller, AnswerRequest request)
    : service_(service), request_(std::move(request)) {
  const int64_t context = service.engine.context();
  for (const std::vector<int32_t>& prompt : request_.prompts) {
    const auto n_prompt = static_cast<int64_t>(prompt.size());
    if (n_prompt + 1 > context) throw prompt_too_long(n_prompt, context);
    prompt_tokens_ += n_prompt;
  }
  for (const std::vector<int32_t>& prompt : request_.prompts) {
    for (int i = 0; i < request_.n; ++i) {
      Request one;
      one.prompt = prompt;
      one.options = request_.options;
      one.options.sampling.seed += static_cast<uint64_t>(i);  // choices of one seed differ, and repeat together
      one.options.max_tokens = std::min(one.options.max_tokens, context - static_cast<int64_t>(prompt.size()));
      one.logprobs = request_.logprobs;
      one.top_logprobs = request_.top_logprobs;
      if (request_.make_constraint) one.constraint = request_.make_constraint();
      one.user = caller.key.empty() ? request_.user : caller.key;
      one.priority = caller.priority;
      one.use_cache = request_.use_cache;
      std::variant<RequestHandle, Refusal> taken = service.scheduler.submit(std::move(one));
      if (const auto* refusal = std::get_if<Refusal>(&taken)) {
        const bool full = *refusal == Refusal::kQueueFull;
        ApiError error(full ? 429 : 503, full ? "server: busy, the queue is full; try again later"
                                              : "server: it shuts down; try again later");
        error.retry_after_s = full ? 2 : 10;
        throw error;
      }
      choices_.push_back(std::make_unique<Choice>(*this, choices_.size(), std::get<RequestHandle>(std::move(taken))));
    }
  }
}

AnswerRun::~AnswerRun() = default;

AnswerRun::End AnswerRun::run(AnswerListener& listener) {
  for (size_t first = 0;;) {
    while (first < choices_.size() && choices_[first]->finished()) ++first;
    if (first == choices_.size()) return End::kFinished;
    // One reader for all: those behind the first are looked at in passing, so a lone choice waits without turns.
    bool is_alone = true;
    for (size_t i = first + 1; i < choices_.size(); ++i) {
      if (choices_[i]->finished()) continue;
      is_alone = false;
      while (!choices_[i]->finished() && choices_[i]->pump(std::chrono::milliseconds(0), listener)) {
      }
    }
    constexpr std::chrono::milliseconds kTurn{10};
    choices_[first]->pump(is_alone ? kWaitSlice : kTurn, listener);
    listener.on_turn();  // progress of a prompt is an event too, and nothing is written of it
    if (listener.gone()) return End::kClientGone;
  }
}

int64_t AnswerRun::cached_tokens() const {
  int64_t cached = 0;
  for (size_t i = 0; i < choices_.size(); i += static_cast<size_t>(request_.n)) cached += choices_[i]->cached_tokens();
  return cached;
}

}  // namespace fathom
