// Many requests, one engine: continuous batching. Start here; the order of a step is in scheduler.cpp.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <variant>

#include "engine/draft_policy.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "engine/scheduler_stats.h"
#include "engine/text_cache.h"

namespace fathom {

constexpr int kMaxRunning = 1024;

struct SchedulerOptions {
  int max_running = 8;  ///< sequences in one step, 1..kMaxRunning
  int max_queued = 64;  ///< waiting requests; the next is refused
  /// What a prompt may cost the running answers: the longest wait between two of their tokens, as far as measured step
  /// costs foretell. A chunk that takes longer is interrupted for them: then the wait is this and one operation of the
  /// chunk, or, where a decode step alone takes more than half of this, half of this, that step and one operation.
  std::chrono::milliseconds max_stall{250};
  bool own_thread = true;     ///< false: the engine runs on the thread that calls work()
  size_t event_buffer = 256;  ///< unread tokens of one request
  std::chrono::milliseconds reader_patience{30000};
  DraftMode draft = DraftMode::kAuto;      ///< guesses at an answer's next tokens, evaluated beside the last one
  double cache_share = 1;                  ///< of the pool that finished texts may keep while nobody needs it, 0..1
  std::optional<DiskCacheOptions> disk{};  ///< nothing: texts are forgotten at the end of the process
  /// What max_stall is measured by, asked once between two operations; empty: the steady clock.
  std::function<std::chrono::steady_clock::time_point()> clock{};
  /// Told of each, on the engine's thread: answers go on without the disk. May be empty.
  std::function<void(const std::string&)> on_disk_problem{};
};

enum class Refusal { kQueueFull, kShuttingDown };

/// Thread-safe. Runs the engine on a thread of its own from construction to shutdown(), or in calls of work();
/// meanwhile nobody else may step the engine or touch its pool.
///
/// Promises (tests/engine/scheduler_test.cpp):
/// - What a request answers depends on the model, its own fields and the engine's options, to the last bit of the
///   logits: not on what runs beside it, on when it came, on preemption, on guesses, or on what the cache held
///   (attention_plan.h says how).
/// - An answer in progress waits for its next token as max_stall says, however long the prompts beside it.
/// - A cancelled request gives its pages back within max_stall or, in a long step, one operation; a failed one within
/// one
///   step. Neither changes what others answer.
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

  /// Of a scheduler without a thread: one step, or what else there is to do. `look` is called now and then, during long
  /// steps too; it may read events and cancel. False if there was nothing to do.
  bool work(const std::function<void()>& look);

  SchedulerStats stats() const;

  /// Refuses new requests, lets the others finish for `deadline`, cancels the rest, saves recent texts to disk, stops
  /// the thread. Events that were not read stay readable. Blocks; may be called once more to no effect.
  void shutdown(std::chrono::milliseconds deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
