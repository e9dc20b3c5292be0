// The inside of a Scheduler: what a request is while it is worked on, and the state of the loop. Used by scheduler.cpp
// (who comes, goes and waits) and scheduler_step.cpp (what a step evaluates).
//
// A request is its tokens (prompt, then answer), of which the first sequence.length() are evaluated. A step evaluates
// some of the others: one token of an answer, a chunk of a prompt, after a preemption everything again. When none is
// left, the logits give the next token. So there is one path for prompts, answers and recomputation.
//
// An answer's part may also bring guesses at its next tokens (Task::guesses). Their logits are taken one after the
// other as long as the sampler chooses what was guessed; the rest is dropped. Whether a guess is evaluated changes no
// answer.
//
// A step with much of a prompt takes longer than answers may wait. Between its operations the loop looks around
// (between()): requests come and go, and the tasks that are not part of it get steps of their own inside it.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/chunk_sizer.h"
#include "engine/draft_policy.h"
#include "engine/event_channel.h"
#include "engine/fair_shares.h"
#include "engine/repetition.h"
#include "engine/scheduler.h"

namespace fathom {

using Clock = std::chrono::steady_clock;

inline double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

/// A token that may come next, and what it is judged by (DraftPolicy::chance).
struct Guess {
  int32_t id;
  DraftSource source;
  double hint;
};

constexpr int kNotUrgent = std::numeric_limits<int>::min();

struct Task {
  Task(Engine& engine, Request r, std::shared_ptr<EventChannel> c)
      : channel(std::move(c)),
        request(std::move(r)),
        plan(engine.attention_plan(static_cast<int64_t>(request.prompt.size()))),
        tokens(request.prompt),
        keys(row_keys(tokens, plan)),
        sequence(engine.pool()),
        writer(engine.tokenizer(), request.options, request.prompt, request.constraint) {
    generation.prompt_tokens = n_prompt();
  }

  int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t pending() const { return static_cast<int64_t>(tokens.size()) - sequence.length(); }
  /// What another's pages can spare: all but the last token, whose logits are wanted.
  std::span<const int32_t> sharable_keys() const { return std::span(keys).first(keys.size() - 1); }
  std::span<const int32_t> evaluated_keys() const {
    return std::span(keys).first(static_cast<size_t>(sequence.length()));
  }
  bool answering() const { return !writer.token_ids().empty(); }
  /// A reader that is behind has enough to read.
  int urgency() const { return channel->full_since() ? kNotUrgent : request.priority; }

  const std::shared_ptr<EventChannel> channel;
  const Request request;
  const AttentionPlan plan;
  std::vector<int32_t> tokens;
  std::vector<int32_t> keys;  ///< of tokens
  Sequence sequence;
  AnswerWriter writer;
  Generation generation;
  RepetitionIndex repetition;
  std::optional<Draft> mtp_draft;  ///< at what follows the last token
  std::vector<Guess> guesses;      ///< of the step in progress: at what follows tokens
  std::vector<int32_t> step_ids;   ///< what that step evaluates, if there are guesses
  int64_t evaluated_tokens = 0;    ///< before the first answer token
  int64_t branch = 0;              ///< where another text went on differently: a chunk ends there, for the next one
  const Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> started;
  Clock::time_point first_token, last_token;
};

/// A task's part in a step.
struct Part {
  Task* task;
  int64_t n_tokens;  ///< guesses included

  bool is_answer() const { return task->pending() == 1 && task->answering(); }
};

/// A part after its step.
struct Evaluated {
  Task* task;
  int64_t first_position;  ///< of its tokens
  int64_t first_row;       ///< among the step's tokens
  bool has_more;           ///< to evaluate before there are logits
};

struct Scheduler::Impl {
  Impl(Engine& e, const SchedulerOptions& o)
      : engine(e),
        options(o),
        cache(e, static_cast<int64_t>(o.cache_share * e.pool().n_pages()), o.disk),
        sizer(o.max_stall),
        drafts(o.draft, [&e](int64_t rows) { return e.cost(1, rows, 0).weight_bytes; }) {
    totals.pages = engine.pool().n_pages();
    publish();
    if (o.own_thread) thread = std::thread([this] { run(); });
  }

  using TaskPtr = std::unique_ptr<Task>;

  Engine& engine;
  const SchedulerOptions options;
  const std::shared_ptr<Signal> signal = std::make_shared<Signal>();
  std::atomic<uint64_t> next_id = 1;

  // Of the loop's thread.
  TextCache cache;
  ChunkSizer sizer;
  DraftPolicy drafts;
  FairShares shares;
  std::vector<TaskPtr> queue, running;  // both in order of arrival
  SchedulerStats totals;
  double saving_credit_s = 0;  // time that saving texts may take beside steps

  // Of the long step in progress and the steps inside it.
  std::span<const Part> long_step;  // its parts; empty: none in progress
  Clock::time_point answered;       // when the answers last got a step
  bool answers_lack_pages = false;  // a step inside found none; only a step of their own may take others'
  bool was_stopped = false;         // the last long step did not come to its end
  double inside_seconds = 0;        // of all steps inside others
  std::exception_ptr inside_problem;
  const std::function<void()>* look = nullptr;  // of the work() in progress

  // Shared.
  mutable std::mutex mutex;
  std::vector<TaskPtr> inbox;
  size_t in_house = 0;  // submitted and not ended
  uint64_t refused = 0;
  std::optional<Clock::time_point> closes_at;
  SchedulerStats published;
  std::thread thread;

  Clock::time_point now() const { return options.clock ? options.clock() : Clock::now(); }
  void run();
  bool turn_or_fail();
  void save_beside(double worked_seconds);
  bool turn();
  void take_in();
  void end_cancelled(bool all);
  void admit();
  bool start(Task& task);
  Task* next_in_queue();
  static void move_task(const Task& task, std::vector<TaskPtr>& from, std::vector<TaskPtr>& to);
  Task* victim(int below_priority, const std::string* share_of);
  void preempt(Task& task);
  void catch_up(Task& task);
  bool waits_for(const Task& task, std::span<const Part> prompts) const;
  bool in_long_step(const Task& task) const;
  std::vector<Part> plan_step(int64_t prompt_tokens);
  void make_room(std::vector<Part>& parts);
  std::vector<Guess> guesses_for(Task& task);
  void add_guesses(std::vector<Part>& parts);
  void run_step(std::span<const Part> parts, bool is_long);
  static StepPart step_part(const Part& part);
  bool evaluate(std::span<const Part> parts, bool is_long);
  std::vector<Evaluated> take_outputs(std::span<const Part> parts, std::span<const StepPart> step,
                                      DraftPolicy::Outcome& outcome);
  bool between();
  void step_inside();
  bool out_of_time() const;
  int64_t take_answers(Task& task, int64_t first_output, DraftPolicy::Outcome& outcome);
  bool take_logits(Task& task, std::span<const float> logits);
  void run_mtp(std::span<const Evaluated> evaluated);
  void prompt_done(Task& task);
  void finish(Task& task, FinishReason reason);
  void fail(Task& task, const Error& error);
  void leave(Task& task, Event last);
  void publish();
  std::set<std::string> users() const;
};

}  // namespace fathom
