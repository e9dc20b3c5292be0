// One turn of the loop: take in and cancel, admit, evaluate one step, hand out its tokens.
//
// A request is its tokens (prompt, then answer), of which the first sequence.length() are evaluated. A step evaluates some
// of the others: one token of an answer, a chunk of a prompt, after a preemption everything again. When none is left, the
// logits give the next token. So there is one path for prompts, answers and recomputation.
#include "engine/scheduler.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "core/error.h"
#include "engine/chunk_sizer.h"
#include "engine/event_channel.h"
#include "engine/fair_shares.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point a, Clock::time_point b) { return std::chrono::duration<double>(b - a).count(); }

/// How often a loop without work looks at readers that have stopped reading, and at its end.
constexpr std::chrono::milliseconds kIdleTick{50};
/// A chunk that is split among prompts gives each at least this much.
constexpr int64_t kMinShareTokens = 64;
constexpr int64_t kMinExpandedTokens = 256;
/// Decoding a token costs the engine about this many prompt tokens, in shares.
constexpr double kAnswerTokenCharge = 4;

constexpr int kNotUrgent = std::numeric_limits<int>::min();

struct Task {
  Task(Engine& engine, Request r, std::shared_ptr<EventChannel> c)
      : channel(std::move(c)), request(std::move(r)), plan(engine.attention_plan(static_cast<int64_t>(request.prompt.size()))), tokens(request.prompt),
        keys(row_keys(tokens, plan)), sequence(engine.pool()), writer(engine.tokenizer(), request.options, request.prompt, request.constraint) {
    generation.prompt_tokens = n_prompt();
  }

  int64_t n_prompt() const { return static_cast<int64_t>(request.prompt.size()); }
  int64_t pending() const { return static_cast<int64_t>(tokens.size()) - sequence.length(); }
  /// What another's pages can spare: all but the last token, whose logits are wanted.
  std::span<const int32_t> sharable_keys() const { return std::span(keys).first(keys.size() - 1); }
  std::span<const int32_t> evaluated_keys() const { return std::span(keys).first(static_cast<size_t>(sequence.length())); }
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
  int64_t evaluated_tokens = 0;  ///< before the first answer token
  const Clock::time_point submitted = Clock::now();
  std::optional<Clock::time_point> started;
  Clock::time_point first_token, last_token;
};

/// A task's part in a step.
struct Part {
  Task* task;
  int64_t n_tokens;
};

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

// ---- the loop's state ----

struct Scheduler::Impl {
  Impl(Engine& e, const SchedulerOptions& o)
      : engine(e), options(o), cache(e, static_cast<int64_t>(o.cache_share * e.pool().n_pages()), o.disk), sizer(e.chunk_tokens(), o.max_stall) {
    totals.pages = engine.pool().n_pages();
    publish();
    thread = std::thread([this] { run(); });
  }

  using TaskPtr = std::unique_ptr<Task>;

  Engine& engine;
  const SchedulerOptions options;
  const std::shared_ptr<Signal> signal = std::make_shared<Signal>();
  std::atomic<uint64_t> next_id = 1;

  // Of the loop's thread.
  TextCache cache;
  ChunkSizer sizer;
  FairShares shares;
  std::vector<TaskPtr> queue, running;  // both in order of arrival
  SchedulerStats totals;

  // Shared.
  mutable std::mutex mutex;
  std::vector<TaskPtr> inbox;
  size_t in_house = 0;  // submitted and not ended
  uint64_t refused = 0;
  std::optional<Clock::time_point> closes_at;
  SchedulerStats published;
  std::thread thread;

  void run();
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
  std::vector<Part> plan_step();
  void make_room(std::vector<Part>& parts);
  void evaluate(std::span<const Part> parts);
  void take_logits(Task& task, std::span<const float> logits);
  void prompt_done(Task& task);
  void finish(Task& task, FinishReason reason);
  void fail(Task& task, const Error& error);
  void leave(Task& task, Event last);
  void publish();
  std::set<std::string> users() const;
};

void Scheduler::Impl::run() {
  for (;;) {
    bool worked = false;
    try {
      worked = turn();
    } catch (const std::exception& e) {
      // Not the work of one request (those are caught where they happen): the ones at work may be damaged, the engine goes on.
      while (!running.empty()) fail(*running.back(), Error(ErrorCode::kRuntime, std::string("scheduler: ") + e.what()));
    }
    publish();
    if (worked) continue;
    bool closing;
    {
      const std::lock_guard lock(mutex);
      closing = closes_at.has_value();
      if (closing && in_house == 0) break;
      if (!inbox.empty()) continue;
    }
    if (running.empty() && queue.empty() && cache.save_one()) continue;
    // Whoever is left waits for a reader.
    signal->wait(running.empty() && queue.empty() && !closing ? std::nullopt : std::optional(kIdleTick));
  }
  while (cache.save_one()) {
  }
  publish();
}

/// False if there was nothing to evaluate.
bool Scheduler::Impl::turn() {
  take_in();
  bool out_of_time;
  {
    const std::lock_guard lock(mutex);
    out_of_time = closes_at && Clock::now() >= *closes_at;
  }
  end_cancelled(out_of_time);
  admit();
  std::vector<Part> parts = plan_step();
  make_room(parts);
  if (parts.empty()) return false;

  int64_t prompt_tokens = 0, decode_parts = 0;
  for (const Part& part : parts) (part.task->pending() == 1 && part.task->answering() ? decode_parts : prompt_tokens) += part.n_tokens;
  const Clock::time_point start = Clock::now();
  evaluate(parts);
  const double seconds = seconds_between(start, Clock::now());
  const double decode_seconds = sizer.measured(prompt_tokens, decode_parts, seconds);
  ++totals.steps_total;
  totals.decode_parts_total += static_cast<uint64_t>(decode_parts);
  totals.decode_steps_total += decode_parts > 0 ? 1 : 0;
  totals.evaluated_tokens_total += static_cast<uint64_t>(prompt_tokens);
  totals.decode_seconds_total += decode_seconds;
  totals.prompt_seconds_total += seconds - decode_seconds;
  return true;
}

void Scheduler::Impl::publish() {
  totals.running = static_cast<int>(running.size());
  totals.cached_pages = cache.idle_pages();
  totals.used_pages = engine.pool().used_pages() - totals.cached_pages;
  totals.disk_hits_total = cache.disk_hits();
  totals.last_disk_problem = cache.disk_problem();
  const std::lock_guard lock(mutex);
  totals.queued = static_cast<int>(queue.size() + inbox.size());
  totals.refused_total = refused;
  published = totals;
}

// ---- coming and going ----

std::set<std::string> Scheduler::Impl::users() const {
  std::set<std::string> present;
  for (const auto* tasks : {&queue, &running}) {
    for (const TaskPtr& task : *tasks) present.insert(task->request.user);
  }
  return present;
}

void Scheduler::Impl::take_in() {
  std::vector<TaskPtr> arrived;
  {
    const std::lock_guard lock(mutex);
    arrived.swap(inbox);
  }
  for (TaskPtr& task : arrived) {
    shares.arrive(task->request.user, users());
    queue.push_back(std::move(task));
  }
}

void Scheduler::Impl::end_cancelled(bool all) {
  const Clock::time_point now = Clock::now();
  std::vector<Task*> cancelled, impatient;
  for (auto* tasks : {&queue, &running}) {
    for (const TaskPtr& task : *tasks) {
      const auto full_since = task->channel->full_since();
      if (all || task->channel->cancelled()) {
        cancelled.push_back(task.get());
      } else if (full_since && now - *full_since > options.reader_patience) {
        impatient.push_back(task.get());
      }
    }
  }
  for (Task* task : cancelled) finish(*task, FinishReason::kInterrupted);
  for (Task* task : impatient) {
    fail(*task, Error(ErrorCode::kRuntime, "stream: its reader has stopped; expected fewer than " + std::to_string(options.event_buffer) + " unread tokens within " +
                                               std::to_string(options.reader_patience.count()) + " ms, got more; try to read faster"));
  }
}

/// The waiting task whose turn it is.
Task* Scheduler::Impl::next_in_queue() {
  auto before = [&](const Task& a, const Task& b) {
    if (a.urgency() != b.urgency()) return a.urgency() > b.urgency();
    const double x = shares.served(a.request.user), y = shares.served(b.request.user);
    return x != y ? x < y : a.channel->id() < b.channel->id();
  };
  Task* best = nullptr;
  for (const TaskPtr& task : queue) {
    if (task->urgency() != kNotUrgent && (best == nullptr || before(*task, *best))) best = task.get();
  }
  return best;
}

void Scheduler::Impl::admit() {
  while (Task* task = next_in_queue()) {
    if (running.size() >= static_cast<size_t>(options.max_running)) {
      // A slot is taken from less urgent work, or from a user with several for one with none.
      Task* loser = victim(task->request.priority, nullptr);
      if (loser == nullptr) loser = victim(task->request.priority + 1, &task->request.user);
      if (loser == nullptr) return;
      preempt(*loser);
    }
    while (!start(*task)) {
      Task* loser = victim(task->request.priority, nullptr);
      if (loser == nullptr) return;
      preempt(*loser);
    }
    move_task(*task, queue, running);
  }
}

/// From one list to the other, which stays in order of arrival.
void Scheduler::Impl::move_task(const Task& task, std::vector<TaskPtr>& from, std::vector<TaskPtr>& to) {
  const auto at = std::find_if(from.begin(), from.end(), [&](const TaskPtr& t) { return t.get() == &task; });
  const auto place = std::upper_bound(to.begin(), to.end(), task.channel->id(), [](uint64_t id, const TaskPtr& other) { return id < other->channel->id(); });
  to.insert(place, std::move(*at));
  from.erase(at);
}

/// Shares cached pages and checks that the rest of prompt and one token more fit beside what is promised to others.
bool Scheduler::Impl::start(Task& task) {
  PagePool& pool = engine.pool();
  if (task.request.use_cache) task.sequence = cache.find(task.sharable_keys());
  int64_t promised = static_cast<int64_t>(running.size());  // a page each, to grow
  for (const TaskPtr& other : running) promised += other->sequence.pages_needed(other->pending());
  const int64_t needed = task.sequence.pages_needed(task.pending() + 1);
  if (!running.empty() && needed + promised > pool.free_pages() + cache.idle_pages()) {
    task.sequence.clear();
    return false;
  }
  if (!task.started) {
    task.started = Clock::now();
    const double waited = seconds_between(task.submitted, *task.started);
    task.generation.queue_ms = waited * 1000;
    totals.queue_seconds.add(waited);
    if (task.request.use_cache) {
      ++totals.prefix_queries_total;
      totals.prefix_hits_total += task.sequence.length() > 0 ? 1 : 0;
    }
  }
  task.channel->push(StartedEvent{task.n_prompt(), std::min(task.sequence.length(), task.n_prompt())});
  return true;
}

/// The running task to give way: of those less urgent than a priority the least urgent, of these the latest. With
/// `share_of`: only of users with two or more running, and only if that user has none.
Task* Scheduler::Impl::victim(int below_priority, const std::string* share_of) {
  std::map<std::string, int> n_running;
  for (const TaskPtr& task : running) ++n_running[task->request.user];
  if (share_of != nullptr && n_running.contains(*share_of)) return nullptr;
  Task* worst = nullptr;
  for (const TaskPtr& task : running) {
    if (task->urgency() >= below_priority) continue;
    if (share_of != nullptr && n_running[task->request.user] < 2) continue;
    if (worst == nullptr || task->urgency() <= worst->urgency()) worst = task.get();
  }
  return worst;
}

/// Back to the queue with its tokens; its pages stay in the cache as long as nobody needs them.
void Scheduler::Impl::preempt(Task& task) {
  if (task.request.use_cache) cache.keep(task.evaluated_keys(), task.sequence);
  task.sequence.clear();
  move_task(task, running, queue);
  ++totals.preemptions_total;
}

// ---- a step ----

/// Another request may have evaluated meanwhile what this one needs.
void Scheduler::Impl::catch_up(Task& task) {
  if (task.request.use_cache && cache.length_in_memory(task.sharable_keys()) > task.sequence.length()) {
    task.sequence = cache.find_in_memory(task.sharable_keys());
  }
}

/// Whether a part of this step evaluates rows that the task can share after it.
bool Scheduler::Impl::waits_for(const Task& task, std::span<const Part> prompts) const {
  return task.request.use_cache && std::any_of(prompts.begin(), prompts.end(), [&](const Part& part) {
    const int64_t common = common_length(part.task->keys, task.sharable_keys());
    return part.task->request.use_cache && common > std::max(task.sequence.length(), part.task->sequence.length());
  });
}

/// One token of every answer whose reader keeps up, and chunks of prompts.
std::vector<Part> Scheduler::Impl::plan_step() {
  std::vector<Part> parts;
  std::vector<Task*> prompts;
  for (const TaskPtr& task : running) {
    if (task->urgency() == kNotUrgent) continue;
    if (task->pending() > 1) catch_up(*task);
    if (task->pending() == 1) {
      parts.push_back({task.get(), 1});
    } else {
      prompts.push_back(task.get());
    }
  }
  std::stable_sort(prompts.begin(), prompts.end(), [](const Task* a, const Task* b) { return a->request.priority > b->request.priority; });
  const bool answers_wait = std::any_of(parts.begin(), parts.end(), [](const Part& part) { return part.task->answering(); });
  int64_t left = sizer.next(answers_wait);
  const size_t first_prompt = parts.size();
  for (Task* task : prompts) {
    if (!waits_for(*task, std::span(parts).subspan(first_prompt))) parts.push_back({task, 0});
  }
  // Every prompt gets a like share, so that a short one does not wait for a long one; the first get what others leave.
  const auto n_prompts = static_cast<int64_t>(parts.size() - first_prompt);
  const int64_t share = n_prompts == 0 ? 0 : std::max(kMinShareTokens, left / n_prompts);
  for (const int64_t most : {share, left}) {
    for (size_t i = first_prompt; i < parts.size() && left > 0; ++i) {
      Part& part = parts[i];
      const Task& task = *part.task;
      const int64_t at = task.sequence.length() + part.n_tokens, pending = task.pending() - part.n_tokens;
      if (pending == 0 || task.plan.form(at) != task.plan.form(task.sequence.length())) continue;
      // Every expanded chunk makes the keys of all that came before: a small one would cost as much as a block.
      const int64_t least = task.plan.expanded(at) ? kMinExpandedTokens : 0;
      const int64_t n = task.plan.of_one_form(at, std::min(pending, std::max(std::min(left, most), least)));
      part.n_tokens += n;
      left -= n;
    }
  }
  std::erase_if(parts, [](const Part& part) { return part.n_tokens == 0; });
  return parts;
}

/// Frees pages for all parts: first what only the cache holds, then the last task's, until the parts fit.
void Scheduler::Impl::make_room(std::vector<Part>& parts) {
  for (;;) {
    int64_t needed = 0;
    for (const Part& part : parts) needed += part.task->sequence.pages_needed(part.n_tokens);
    const int64_t lacking = needed - engine.pool().free_pages();
    if (lacking <= 0 || cache.evict(lacking) >= lacking) return;
    Task* loser = running.size() > 1 ? victim(std::numeric_limits<int>::max(), nullptr) : nullptr;
    if (loser == nullptr) {
      // Nobody else holds a page: the pool itself is too small.
      for (const Part& part : std::vector<Part>(parts)) {
        part.task->generation.context_full = true;
        finish(*part.task, FinishReason::kLength);
      }
      parts.clear();
      return;
    }
    std::erase_if(parts, [&](const Part& part) { return part.task == loser; });
    preempt(*loser);
  }
}

/// Runs the parts together; if that fails, one by one, so that the one to blame fails alone.
void Scheduler::Impl::evaluate(std::span<const Part> parts) {
  std::vector<StepPart> step;
  for (const Part& part : parts) {
    const Task& task = *part.task;
    const int64_t at = task.sequence.length();
    const bool wants_logits = part.n_tokens == task.pending() && task.request.options.max_tokens > 0;
    step.push_back({&part.task->sequence, std::span(task.tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(part.n_tokens)),
                    wants_logits ? Outputs::kLast : Outputs::kNone, task.plan.form(at)});
  }
  try {
    FATHOM_CHECK(engine.step(step) == StepStatus::kDone, "pages were made free for this step");
  } catch (const std::exception& e) {
    if (parts.size() == 1) {
      const auto* error = dynamic_cast<const Error*>(&e);
      fail(*parts[0].task, error != nullptr ? *error : Error(ErrorCode::kRuntime, std::string("engine: ") + e.what()));
      return;
    }
    for (const Part& part : parts) {
      part.task->sequence.truncate(part.task->sequence.length());  // gives reservations back
    }
    for (size_t i = 0; i < parts.size(); ++i) evaluate(parts.subspan(i, 1));
    return;
  }
  int64_t output = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    Task& task = *parts[i].task;
    totals.longest_sequence = std::max(totals.longest_sequence, task.sequence.length());
    shares.charge(task.request.user, task.answering() ? 0 : static_cast<double>(parts[i].n_tokens));
    if (!task.answering()) task.evaluated_tokens += parts[i].n_tokens;
    if (step[i].outputs == Outputs::kLast) {
      take_logits(task, engine.logits(output++));
      continue;
    }
    if (!task.answering()) task.channel->push(PrefillEvent{std::min(task.sequence.length(), task.n_prompt()), task.n_prompt()});
    if (task.pending() == 0) {
      prompt_done(task);
      finish(task, FinishReason::kLength);
    } else if (task.request.use_cache) {
      // Whole pages only: the rest of the last one is written next, and would have to be copied.
      cache.keep(task.evaluated_keys().first(static_cast<size_t>(task.sequence.length() / kPageTokens * kPageTokens)), task.sequence);
    }
  }
}

void Scheduler::Impl::prompt_done(Task& task) {
  const Clock::time_point now = Clock::now();
  Generation& g = task.generation;
  g.prompt_ms = seconds_between(*task.started, now) * 1000;
  g.cached_tokens = std::max<int64_t>(0, task.n_prompt() - task.evaluated_tokens);
  totals.prompt_tokens_total += static_cast<uint64_t>(g.prompt_tokens);
  totals.cached_tokens_total += static_cast<uint64_t>(g.cached_tokens);
  if (task.request.use_cache) cache.keep(task.evaluated_keys(), task.sequence);
}

/// The next token of an answer.
void Scheduler::Impl::take_logits(Task& task, std::span<const float> logits) {
  const bool is_first = !task.answering();
  TokenEvent event;
  try {
    const TokenChoice choice = task.writer.add(logits, task.sequence.length() < engine.context());
    event.id = choice.id;
    event.logprob = choice.logprob;
    if (task.request.top_logprobs > 0) event.top_logprobs = top_logprobs(logits, task.request.top_logprobs);
  } catch (const Error& e) {
    fail(task, e);
    return;
  } catch (const std::exception& e) {
    fail(task, Error(ErrorCode::kRuntime, std::string("constraint: ") + e.what()));
    return;
  }
  const Clock::time_point now = Clock::now();
  if (is_first) {
    task.channel->push(PrefillEvent{task.n_prompt(), task.n_prompt()});
    prompt_done(task);
    task.first_token = now;
    task.generation.first_token_ms = seconds_between(*task.started, now) * 1000;
    totals.first_token_seconds.add(seconds_between(task.submitted, now));
  } else {
    totals.between_tokens_seconds.add(seconds_between(task.last_token, now));
  }
  task.last_token = now;
  ++totals.generated_tokens_total;
  shares.charge(task.request.user, kAnswerTokenCharge);
  task.keys.push_back(*event.id | (task.plan.expanded(static_cast<int64_t>(task.tokens.size())) ? kExpandedRow : 0));
  task.tokens.push_back(*event.id);
  event.text = task.writer.take_text();
  task.generation.text += event.text;
  task.channel->push(std::move(event));
  if (task.writer.ended()) finish(task, task.writer.finish());
}

void Scheduler::Impl::finish(Task& task, FinishReason reason) {
  task.writer.end(reason);
  if (std::string rest = task.writer.take_text(); !rest.empty()) {
    task.generation.text += rest;
    task.channel->push(TokenEvent{std::move(rest), std::nullopt, 0, {}});
  }
  Generation& g = task.generation;
  g.token_ids = task.writer.token_ids();
  g.finish = task.writer.finish();
  g.stop = task.writer.stop();
  g.context_full |= task.writer.context_full();
  const Clock::time_point now = Clock::now();
  if (!g.token_ids.empty()) g.decode_ms = seconds_between(task.first_token, now) * 1000;
  if (task.request.use_cache) cache.keep_for_long(task.evaluated_keys(), task.sequence);
  ++(g.finish == FinishReason::kInterrupted ? totals.cancelled_total : totals.finished_total);
  totals.request_seconds.add(seconds_between(task.submitted, now));
  leave(task, FinishedEvent{g});
}

/// Its last pages are not kept: they may hold what made it fail.
void Scheduler::Impl::fail(Task& task, const Error& error) {
  ++totals.failed_total;
  leave(task, FailedEvent{error});
}

/// The end of `task`. The gauges are published before its last event can be read.
void Scheduler::Impl::leave(Task& task, Event last) {
  const std::shared_ptr<EventChannel> channel = task.channel;
  for (auto* tasks : {&queue, &running}) {
    std::erase_if(*tasks, [&](const TaskPtr& t) { return t.get() == &task; });
  }
  {
    const std::lock_guard lock(mutex);
    --in_house;
  }
  publish();
  channel->push(std::move(last));
}

// ---- the outside ----

Scheduler::Scheduler(Engine& engine, const SchedulerOptions& options) {
  auto require = [](bool holds, const std::string& message) {
    if (!holds) throw Error(ErrorCode::kUsage, "scheduler: " + message);
  };
  require(options.max_running >= 1 && options.max_running <= 1024, "sequences at once; expected 1 to 1024, got " + std::to_string(options.max_running));
  require(options.max_queued >= 0, "waiting requests; expected 0 or more, got " + std::to_string(options.max_queued));
  require(options.event_buffer >= 1, "unread tokens; expected 1 or more, got 0");
  require(options.cache_share >= 0 && options.cache_share <= 1, "the cache's share of the pages; expected 0 to 1, got " + std::to_string(options.cache_share));
  impl_ = std::make_unique<Impl>(engine, options);
}

Scheduler::~Scheduler() { shutdown(std::chrono::milliseconds(0)); }

std::variant<RequestHandle, Refusal> Scheduler::submit(Request request) {
  Impl& m = *impl_;
  validate_request(m.engine, request.prompt, request.options);
  if (request.top_logprobs < 0 || request.top_logprobs > kMaxTopLogprobs) {
    throw Error(ErrorCode::kUsage, "top_logprobs: out of range; expected 0 to " + std::to_string(kMaxTopLogprobs) + ", got " + std::to_string(request.top_logprobs));
  }
  if (request.priority < -1000 || request.priority > 1000) {
    throw Error(ErrorCode::kUsage, "priority: out of range; expected -1000 to 1000, got " + std::to_string(request.priority));
  }
  const auto channel = std::make_shared<EventChannel>(m.next_id.fetch_add(1), m.options.event_buffer, m.signal);
  auto task = std::make_unique<Task>(m.engine, std::move(request), channel);
  {
    const std::lock_guard lock(m.mutex);
    if (m.closes_at) return Refusal::kShuttingDown;
    if (m.in_house >= static_cast<size_t>(m.options.max_running) + static_cast<size_t>(m.options.max_queued)) {
      ++m.refused;
      return Refusal::kQueueFull;
    }
    m.inbox.push_back(std::move(task));
    ++m.in_house;
  }
  m.signal->notify();
  return RequestHandle(channel);
}

SchedulerStats Scheduler::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->published;
}

void Scheduler::shutdown(std::chrono::milliseconds deadline) {
  {
    const std::lock_guard lock(impl_->mutex);
    const Clock::time_point closes_at = Clock::now() + deadline;
    if (!impl_->closes_at || closes_at < *impl_->closes_at) impl_->closes_at = closes_at;
  }
  impl_->signal->notify();
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace fathom
