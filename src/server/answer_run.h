// One request's way through the scheduler: submits its choices, reads their events, splits the text into reasoning,
// content and tool calls.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/service.h"
#include "text/chat_parser.h"

namespace fathom {

/// What an endpoint wants answered.
struct AnswerRequest {
  std::vector<std::vector<int32_t>> prompts;  ///< usually one; each gets n choices
  bool is_chat = true;                        ///< false: the text is content as it stands
  ChatParserOptions parser;
  std::string opening;  ///< the beginning of the answer that the prompt already holds, for the parser
  GenerateOptions options;
  int n = 1;
  bool logprobs = false;
  int top_logprobs = 0;
  bool parallel_calls = true;                                         ///< false: an answer ends behind its first call
  std::function<std::shared_ptr<TokenConstraint>()> make_constraint;  ///< may be empty
  std::string user;  ///< as the request says; whose share it is where there are no keys
  bool use_cache = true;
  std::string call_id_prefix = "call_";
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  std::vector<TokenChoice> top;
};

/// A piece of an answer. kCallStart has the call's id.
struct AnswerDelta {
  ChatEvent event;
  std::string call_id;
  std::vector<TokenLogprob> logprobs;  ///< of the content's tokens, if asked for
};

struct FinishedAnswer {
  Generation generation;
  ParsedChat parsed;                  ///< of a raw text: content only
  std::vector<std::string> call_ids;  ///< of parsed.tool_calls
  std::vector<TokenLogprob> logprobs;
  int64_t reasoning_tokens = 0;
  bool hit_end_of_text = false;  ///< stopped by the model, not by a stop string or a limit
};

/// Who hears of it. Called by the thread in AnswerRun::run.
class AnswerListener {
 public:
  virtual ~AnswerListener() = default;
  virtual void on_delta(size_t choice_idx, const AnswerDelta& delta) = 0;
  virtual void on_finished(size_t choice_idx, const FinishedAnswer& answer) = 0;
  virtual void on_turn() = 0;  ///< at least every kWaitSlice
  virtual bool gone() = 0;     ///< nobody listens any more
};

/// How often a silent run looks whether its client is still there.
constexpr std::chrono::milliseconds kWaitSlice{100};

class AnswerRun {
 public:
  /// Submits. Throws ApiError: 400 for prompts that do not fit, 429 when the queue is full, 503 when the server shuts
  /// down.
  AnswerRun(Service& service, const Caller& caller, AnswerRequest request);
  ~AnswerRun();

  enum class End { kFinished, kClientGone };
  /// Until every choice is finished or the listener is gone; then the rest is cancelled. Throws what a choice failed
  /// with.
  End run(AnswerListener& listener);

  /// Of all prompts; each prompt's tokens count once however many choices it has.
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t cached_tokens() const;
  size_t n_choices() const { return choices_.size(); }

 private:
  class Choice;

  Service& service_;
  AnswerRequest request_;
  int64_t prompt_tokens_ = 0;
  std::vector<std::unique_ptr<Choice>> choices_;
};

/// "prefix" and 24 random letters and digits.
std::string random_id(std::string_view prefix);
uint64_t random_seed();

}  // namespace fathom
