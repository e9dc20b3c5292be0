// Many requests, one engine: continuous batching. Start here; the order of a step is in scheduler.cpp.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "core/error.h"
#include "engine/engine.h"
#include "engine/generate.h"
#include "sampling/sampler.h"

namespace fathom {

/// Limits what one answer may contain (JSON schema, grammar). Called by the engine's thread only, between tokens; what
/// it throws fails its request and no other.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  /// Bit id % 64 of word id / 64 is set for tokens that may come next; empty: all. Valid until accept().
  virtual std::span<const uint64_t> allowed() = 0;
  virtual void accept(int32_t token_id) = 0;
};

constexpr int kMaxTopLogprobs = 20;

struct Request {
  std::vector<int32_t> prompt;  ///< BOS included if the model wants one
  GenerateOptions options;
  bool logprobs = false;  ///< every token's own log-probability
  int top_logprobs = 0;   ///< the most likely tokens at each place, 0..kMaxTopLogprobs
  std::shared_ptr<TokenConstraint> constraint;  ///< null: none
  int priority = 0;                             ///< higher goes first, and is preempted last
  std::string user;       ///< whose share it is paid from; requests of one priority take turns by user
  bool use_cache = true;  ///< false: neither finds nor leaves cached pages
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
  std::string text;           ///< valid UTF-8; empty while a character or a stop string may be unfinished
  std::optional<int32_t> id;  ///< nothing: text that was held back until the end
  float logprob = 0;          ///< if asked for
  std::vector<TokenChoice> top_logprobs;
};
struct FinishedEvent {
  Generation generation;  ///< FinishReason::kInterrupted: cancelled
};
struct FailedEvent {
  Error error;
};
using Event = std::variant<StartedEvent, PrefillEvent, TokenEvent, FinishedEvent, FailedEvent>;

/// One submitted request, for one reader thread. Destroying it cancels what is not finished.
class RequestHandle {
 public:
  RequestHandle(RequestHandle&&) noexcept;
  RequestHandle& operator=(RequestHandle&&) noexcept;
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
  friend class Scheduler;
  struct State;
  explicit RequestHandle(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

struct DiskCacheOptions {
  std::filesystem::path folder;
  uint64_t max_bytes = uint64_t{8} << 30;
};

struct SchedulerOptions {
  int max_running = 8;  ///< sequences in one step
  int max_queued = 64;  ///< waiting requests; the next is refused
  /// What a prefill chunk may cost the running answers: the longest wait between two of their tokens, as far as measured
  /// step costs foretell. Chunks never go below kMinChunkTokens.
  std::chrono::milliseconds max_stall{250};
  size_t event_buffer = 256;  ///< unread tokens of one request
  std::chrono::milliseconds reader_patience{30000};
  std::optional<double> cache_share;     ///< of the pool that finished texts may keep, 0..1; nothing: all of it
  std::optional<DiskCacheOptions> disk;  ///< nothing: texts are forgotten at the end of the process
};

constexpr int64_t kMinChunkTokens = 32;

/// Counts of values below bounds, as Prometheus histograms have them. Seconds.
struct LatencyHistogram {
  static constexpr std::array<double, 14> kBounds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
  std::array<uint64_t, kBounds.size() + 1> counts{};  ///< not cumulative; the last: above all bounds
  double sum = 0;

  void add(double seconds);
  uint64_t total() const;
};

/// A consistent snapshot. Totals count from the scheduler's start.
struct SchedulerStats {
  int running = 0, queued = 0;
  int64_t pages = 0, used_pages = 0, cached_pages = 0;  ///< cached: in the prefix tree, shared with running ones or not
  uint64_t finished_total = 0, cancelled_total = 0, failed_total = 0, refused_total = 0;
  uint64_t prompt_tokens_total = 0, cached_tokens_total = 0;  ///< of started requests
  uint64_t evaluated_tokens_total = 0;                        ///< prompt tokens that went through the model
  uint64_t generated_tokens_total = 0;
  uint64_t prefix_queries_total = 0, prefix_hits_total = 0, disk_hits_total = 0;
  uint64_t preemptions_total = 0, steps_total = 0;
  double prompt_seconds_total = 0, decode_seconds_total = 0;  ///< of steps, shared out by what they did
  uint64_t decode_parts_total = 0, decode_steps_total = 0;    ///< their ratio: answers per decode step
  int64_t longest_sequence = 0;                               ///< most tokens a sequence has had
  LatencyHistogram queue_seconds, first_token_seconds, between_tokens_seconds, request_seconds;
  std::optional<std::string> last_disk_problem;  ///< saving or restoring went wrong; answers are unaffected
};

enum class Refusal { kQueueFull, kShuttingDown };

/// Thread-safe. Runs the engine on a thread of its own from construction to shutdown(); meanwhile nobody else may step
/// the engine or touch its pool.
///
/// Promises (tests/engine/scheduler_test.cpp):
/// - What a request answers depends on the model, its own fields and the engine's options, to the last bit of the
///   logits: not on what runs beside it, on when it came, on preemption, or on what the cache held (attention_plan.h
///   says how).
/// - An answer in progress waits at most one chunk for its next token, however long the prompts beside it.
/// - A cancelled or failed request gives its pages back within one step and disturbs no other.
class Scheduler {
 public:
  /// Throws Error{kUsage} for impossible options, Error{kRuntime} if the disk folder cannot be used.
  Scheduler(Engine& engine, const SchedulerOptions& options);
  ~Scheduler();  ///< shutdown(0) if it was not called
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Throws Error{kUsage} for what is wrong with the request, Error{kRuntime} if the prompt does not fit
  /// Engine::context() with one token more (a caller that wants another message compares first).
  std::variant<RequestHandle, Refusal> submit(Request request);

  SchedulerStats stats() const;

  /// Refuses new requests, lets the others finish for `deadline`, cancels the rest, saves recent texts to disk, stops the
  /// thread. Events that were not read stay readable. Blocks; may be called once more to no effect.
  void shutdown(std::chrono::milliseconds deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
