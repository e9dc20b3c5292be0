// One turn of the loop: take in and cancel, admit, evaluate one step (scheduler_step.cpp).
#include "engine/scheduler.h"

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "engine/scheduler_impl.h"

namespace fathom {
namespace {

/// How often a loop without work looks at readers that have stopped reading, and at its end.
constexpr std::chrono::milliseconds kIdleTick{50};
/// Of the time of steps, what saving texts may take in addition; and what it may have saved up, seconds: a page or a
/// few.
constexpr double kSavingShare = 0.05, kMostSavingCredit = 0.05;

}  // namespace

// ---- the loop ----

void Scheduler::Impl::run() {
  for (;;) {
    if (turn_or_fail()) continue;
    bool closing;
    {
      const std::lock_guard lock(mutex);
      closing = closes_at.has_value();
      if (closing && in_house == 0) break;
      if (!inbox.empty()) continue;
    }
    if (running.empty() && queue.empty() && cache.save_page()) continue;
    // Whoever is left waits for a reader.
    signal->wait(running.empty() && queue.empty() && !closing ? std::nullopt : std::optional(kIdleTick));
  }
  while (cache.save_page()) {
  }
  publish();
}

/// Texts are saved while others are answered, too, a page at a time: a busy server would else never come to it.
void Scheduler::Impl::save_beside(double worked_seconds) {
  saving_credit_s = std::min(saving_credit_s + kSavingShare * worked_seconds, kMostSavingCredit);
  if (saving_credit_s <= 0) return;
  const Clock::time_point start = now();
  if (cache.save_page()) saving_credit_s -= seconds_between(start, now());
}

bool Scheduler::Impl::turn_or_fail() {
  const Clock::time_point start = now();
  bool worked = false;
  try {
    worked = turn();
  } catch (const std::exception& e) {
    // Not the work of one request (those are caught where they happen): the ones at work may be damaged, the engine
    // goes on.
    const Error error(ErrorCode::kRuntime, std::string("scheduler: ") + e.what());
    if (running.empty() && !queue.empty()) fail(*queue.front(), error);  // or it would come to this again
    while (!running.empty()) fail(*running.back(), error);
  }
  if (worked) save_beside(seconds_between(start, now()));
  publish();
  return worked;
}

/// False if there was nothing to evaluate.
bool Scheduler::Impl::turn() {
  take_in();
  end_cancelled(out_of_time());
  admit();
  std::vector<Part> parts = plan_step(std::exchange(answers_lack_pages, false) ? 0 : engine.chunk_tokens());
  if (parts.empty()) parts = plan_step(engine.chunk_tokens());
  int64_t prompt_tokens = 0;
  for (const Part& part : parts) prompt_tokens += part.is_answer() ? 0 : part.n_tokens;
  const bool is_long = prompt_tokens > 0 && !sizer.is_short(prompt_tokens);
  if (is_long) std::erase_if(parts, [](const Part& part) { return part.is_answer(); });
  add_guesses(parts);
  make_room(parts);
  if (parts.empty() && is_long) {
    parts = plan_step(0);
    make_room(parts);
  }
  if (parts.empty()) return false;
  run_step(parts, is_long);
  if (inside_problem) std::rethrow_exception(std::exchange(inside_problem, nullptr));
  return true;
}

bool Scheduler::Impl::out_of_time() const {
  const std::lock_guard lock(mutex);
  return closes_at && Clock::now() >= *closes_at;
}

void Scheduler::Impl::publish() {
  totals.running = static_cast<int>(running.size());
  totals.cached_pages = cache.idle_pages();
  totals.used_pages = engine.pool().used_pages() - totals.cached_pages;
  totals.disk_hits_total = cache.disk_hits();
  if (cache.disk_problems() > totals.disk_problems_total && options.on_disk_problem)
    options.on_disk_problem(*cache.disk_problem());
  totals.disk_problems_total = cache.disk_problems();
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
      if (in_long_step(*task)) continue;
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
    fail(*task, Error(ErrorCode::kRuntime, "stream: its reader has stopped; expected fewer than " +
                                               std::to_string(options.event_buffer) + " unread tokens within " +
                                               std::to_string(options.reader_patience.count()) +
                                               " ms, got more; try to read faster"));
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
  const auto place = std::upper_bound(to.begin(), to.end(), task.channel->id(),
                                      [](uint64_t id, const TaskPtr& other) { return id < other->channel->id(); });
  to.insert(place, std::move(*at));
  from.erase(at);
}

/// Shares cached pages and checks that the rest of prompt and one token more fit beside what is promised to others.
bool Scheduler::Impl::start(Task& task) {
  PagePool& pool = engine.pool();
  if (task.request.use_cache) {
    task.sequence = cache.find(task.sharable_keys());
    task.branch = cache.branch_in_memory(task.sharable_keys());
  }
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
    if (in_long_step(*task) || task->urgency() >= below_priority) continue;
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
  require(options.max_running >= 1 && options.max_running <= kMaxRunning, "sequences at once; expected 1 to " +
                                                                              std::to_string(kMaxRunning) + ", got " +
                                                                              std::to_string(options.max_running));
  require(options.max_queued >= 0, "waiting requests; expected 0 or more, got " + std::to_string(options.max_queued));
  require(options.event_buffer >= 1, "unread tokens; expected 1 or more, got 0");
  require(options.cache_share >= 0 && options.cache_share <= 1,
          "the cache's share of the pages; expected 0 to 1, got " + std::to_string(options.cache_share));
  impl_ = std::make_unique<Impl>(engine, options);
}

Scheduler::~Scheduler() { shutdown(std::chrono::milliseconds(0)); }

std::variant<RequestHandle, Refusal> Scheduler::submit(Request request) {
  Impl& m = *impl_;
  validate_request(m.engine, request);
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

bool Scheduler::work(const std::function<void()>& look) {
  FATHOM_CHECK(!impl_->options.own_thread, "this scheduler works on a thread of its own");
  impl_->look = &look;
  const bool worked = impl_->turn_or_fail();
  impl_->look = nullptr;
  return worked;
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
  if (!impl_->options.own_thread) impl_->run();
}

}  // namespace fathom
