// What a Scheduler is asked and what it answers: requests, events, and the handle that joins the two.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/error.h"
#include "engine/answer_writer.h"
#include "engine/engine.h"
#include "sampling/sampler.h"

namespace fathom {

constexpr int kMaxTopLogprobs = 20;
constexpr int kMaxPriority = 1000;

struct Request {
  std::vector<int32_t> prompt;  ///< BOS included if the model wants one
  GenerateOptions options;
  bool logprobs = false;                          ///< every token's own log-probability
  int top_logprobs = 0;                           ///< the most likely tokens at each place, 0..kMaxTopLogprobs
  std::shared_ptr<TokenConstraint> constraint{};  ///< null: none
  int priority = 0;       ///< -kMaxPriority..kMaxPriority; higher goes first, and is preempted last
  std::string user{};     ///< whose share it is paid from; requests of one priority take turns by user
  bool use_cache = true;  ///< false: neither finds nor leaves cached pages
};

/// Throws Error{kUsage} for fields out of range, an empty prompt or ids outside the vocabulary, Error{kRuntime} naming
/// both numbers if the prompt and one token do not fit the context.
void validate_request(const Engine& engine, const Request& request);

/// What became of a request.
struct Generation {
  std::string text;
  std::vector<int32_t> token_ids;  ///< of the answer, an end token included
  FinishReason finish = FinishReason::kStop;
  std::optional<std::string> stop;  ///< the matched stop string
  bool context_full = false;        ///< kLength because the context ended
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;                      ///< of the prompt, found in a cache
  int64_t draft_tokens = 0, accepted_tokens = 0;  ///< guesses evaluated, and right
  double queue_ms = 0;                            ///< before the first of the following
  double prompt_ms = 0, first_token_ms = 0, decode_ms = 0;

  double prompt_tok_s() const;
  double decode_tok_s() const;  ///< tokens after the first by the time after the first
};

/// The request left the queue (again, after a preemption).
struct StartedEvent {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  ///< of them, found in the cache
};
/// A later one replaces an earlier one that nobody has read.
struct PrefillEvent {
  int64_t done_tokens = 0;  ///< cached ones included
  int64_t total_tokens = 0;
};
/// What one token added. Texts joined are the answer's text.
struct TokenEvent {
  std::string text{};           ///< valid UTF-8; empty while a character or a stop string may be unfinished
  std::optional<int32_t> id{};  ///< nothing: text that was held back until the end
  float logprob = 0;            ///< if asked for
  std::vector<TokenChoice> top_logprobs{};
};
struct FinishedEvent {
  Generation generation;  ///< FinishReason::kInterrupted: cancelled
};
struct FailedEvent {
  Error error;
};
using Event = std::variant<StartedEvent, PrefillEvent, TokenEvent, FinishedEvent, FailedEvent>;

class EventChannel;

/// One submitted request, for one reader thread. May outlive its scheduler. Destroying it cancels what is not finished.
class RequestHandle {
 public:
  explicit RequestHandle(std::shared_ptr<EventChannel> channel) : channel_(std::move(channel)) {}
  RequestHandle(RequestHandle&&) noexcept = default;
  RequestHandle& operator=(RequestHandle&& other) noexcept;
  ~RequestHandle();

  /// The next event, waiting for it; nothing if none came in time or the last one (FinishedEvent or FailedEvent) was
  /// read before. A reader that leaves SchedulerOptions::event_buffer tokens unread makes its own request wait, and
  /// fails it after reader_patience; others go on.
  std::optional<Event> next(std::chrono::milliseconds timeout);
  /// From any thread. The request ends within one step; FinishedEvent{kInterrupted} follows.
  void cancel();
  /// Whether the last event was read.
  bool done() const;
  uint64_t id() const;

 private:
  std::shared_ptr<EventChannel> channel_;
};

}  // namespace fathom
