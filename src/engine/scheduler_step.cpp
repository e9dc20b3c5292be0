// A step: which tokens of which requests are evaluated together, and what becomes of the logits.
#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "core/error.h"
#include "engine/scheduler_impl.h"

namespace fathom {
namespace {

/// A chunk that is split among prompts gives each at least this much.
constexpr int64_t kMinShareTokens = 64;
constexpr int64_t kMinExpandedTokens = 256;
/// Prompts up to this many tokens need not wait for the end of a long step.
constexpr int64_t kShortPromptTokens = 256;
/// Decoding a token costs the engine about this many prompt tokens, in shares.
constexpr double kAnswerTokenCharge = 4;

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

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
           return part.task->request.use_cache &&
                  common > std::max(task.sequence.length(), part.task->sequence.length());
         });
}

bool Scheduler::Impl::in_long_step(const Task& task) const {
  return std::any_of(long_step.begin(), long_step.end(), [&](const Part& part) { return part.task == &task; });
}

/// One token of every answer whose reader keeps up, and about so many of prompts. Inside a long step: of those that are
/// no part of it and short.
std::vector<Part> Scheduler::Impl::plan_step(int64_t prompt_tokens) {
  std::vector<Part> parts;
  std::vector<Task*> prompts;
  for (const TaskPtr& task : running) {
    if (task->urgency() == kNotUrgent || in_long_step(*task)) continue;
    if (task->pending() > 1) catch_up(*task);
    if (task->pending() == 1) {
      parts.push_back({task.get(), 1});
    } else if (long_step.empty() ||
               (task->pending() <= kShortPromptTokens && !task->plan.expanded(task->sequence.length()))) {
      prompts.push_back(task.get());
    }
  }
  std::stable_sort(prompts.begin(), prompts.end(),
                   [](const Task* a, const Task* b) { return a->request.priority > b->request.priority; });
  int64_t left = prompt_tokens;
  const size_t first_prompt = parts.size();
  for (Task* task : prompts) {
    if (!waits_for(*task, std::span(parts).subspan(first_prompt)) && !waits_for(*task, long_step))
      parts.push_back({task, 0});
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
      const int64_t until = task.sequence.length() < task.branch ? task.branch - at : pending;
      const int64_t n = task.plan.of_one_form(at, std::min({pending, until, std::max(std::min(left, most), least)}));
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

/// What may follow the task's last token, the likeliest first guess first.
std::vector<Guess> Scheduler::Impl::guesses_for(Task& task) {
  const int64_t answered = std::ssize(task.writer.token_ids()), at = task.sequence.length();
  const int64_t most = std::min({static_cast<int64_t>(DraftPolicy::kMostChain),
                                 task.request.options.max_tokens - answered - 1, engine.context() - at - 1});
  if (most <= 0) return {};
  std::vector<Guess> guesses;
  const RepetitionIndex::Found found = task.repetition.find(task.tokens, static_cast<size_t>(most));
  for (size_t i = 0; i < found.tokens.size(); ++i)
    guesses.push_back({found.tokens[i], DraftSource::kRepetition, static_cast<double>(found.match + i)});
  if (!task.mtp_draft) return guesses;
  const Guess mtp{task.mtp_draft->id, DraftSource::kMtp, static_cast<double>(task.mtp_draft->probability)};
  const bool is_better =
      guesses.empty() || (guesses[0].id != mtp.id &&
                          drafts.chance(mtp.source, mtp.hint) > drafts.chance(guesses[0].source, guesses[0].hint));
  return is_better ? std::vector<Guess>{mtp} : guesses;
}

/// To a step of answers alone, as far as they are worth it and there are pages.
void Scheduler::Impl::add_guesses(std::vector<Part>& parts) {
  if (drafts.mode() == DraftMode::kOff ||
      !std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.is_answer(); }))
    return;
  std::vector<DraftPolicy::Chain> chains;
  for (const Part& part : parts) {
    part.task->guesses = guesses_for(*part.task);
    DraftPolicy::Chain& chain = chains.emplace_back();
    for (const Guess& guess : part.task->guesses) chain.chances.push_back(drafts.chance(guess.source, guess.hint));
  }
  const std::vector<size_t> chosen = drafts.choose(parts.size(), chains);
  int64_t needed = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    Task& task = *parts[i].task;
    task.guesses.resize(chosen[i], Guess{});
    parts[i].n_tokens = 1 + static_cast<int64_t>(chosen[i]);
    needed += task.sequence.pages_needed(parts[i].n_tokens);
  }
  if (needed <= engine.pool().free_pages()) return;
  for (Part& part : parts) {
    part.task->guesses.clear();
    part.n_tokens = 1;
  }
}

/// Evaluates and measures. A long step is interrupted for those who are no part of it.
void Scheduler::Impl::run_step(std::span<const Part> parts, bool is_long) {
  int64_t prompt_tokens = 0, decode_parts = 0;
  for (const Part& part : parts) {
    if (part.is_answer()) {
      ++decode_parts;
    } else {
      prompt_tokens += part.n_tokens;
    }
  }
  const Clock::time_point start = now();
  const double inside_before = inside_seconds;
  const bool done = evaluate(parts, is_long);
  was_stopped = !done;
  if (!done) return;
  const double seconds = seconds_between(start, now()) - (inside_seconds - inside_before);
  const double decode_seconds = sizer.measured(prompt_tokens, decode_parts, seconds);
  if (!is_long) answered = now();
  ++totals.steps_total;
  totals.decode_parts_total += static_cast<uint64_t>(decode_parts);
  totals.decode_steps_total += decode_parts > 0 ? 1 : 0;
  totals.evaluated_tokens_total += static_cast<uint64_t>(prompt_tokens);
  totals.decode_seconds_total += decode_seconds;
  totals.prompt_seconds_total += seconds - decode_seconds;
}

/// Between two operations of a long step. False ends it.
bool Scheduler::Impl::between() {
  try {
    if (look != nullptr && *look) (*look)();
    take_in();
    end_cancelled(false);
    if (out_of_time()) return false;
    // What the others in the step lose is a chunk at most, and never twice in a row.
    const auto n_cancelled = std::count_if(long_step.begin(), long_step.end(),
                                           [](const Part& part) { return part.task->channel->cancelled(); });
    if (n_cancelled == std::ssize(long_step) || (n_cancelled > 0 && !was_stopped)) return false;
    if (seconds_between(answered, now()) >= sizer.patience_s()) {
      admit();
      step_inside();
    }
    return true;
  } catch (...) {
    inside_problem = std::current_exception();  // not the fault of the step in progress
    return false;
  }
}

void Scheduler::Impl::step_inside() {
  const std::vector<Part> parts = plan_step(sizer.inside_tokens());
  answered = now();
  if (parts.empty()) return;
  int64_t needed = 0;
  for (const Part& part : parts) needed += part.task->sequence.pages_needed(part.n_tokens);
  const int64_t lacking = needed - engine.pool().free_pages();
  if (lacking > 0 && cache.evict(lacking) < lacking) {
    answers_lack_pages = true;
    return;
  }
  const Clock::time_point start = now();
  const bool was_stopped_before = was_stopped;
  run_step(parts, false);
  was_stopped = was_stopped_before;
  inside_seconds += seconds_between(start, now());
  publish();
}

/// What the engine is asked to do for a part.
StepPart Scheduler::Impl::step_part(const Part& part) {
  Task& task = *part.task;
  const int64_t at = task.sequence.length();
  const AttentionForm form = task.plan.form(at);
  if (!task.guesses.empty()) {
    task.step_ids = {task.tokens.back()};
    for (const Guess& guess : task.guesses) task.step_ids.push_back(guess.id);
    return {&task.sequence, task.step_ids, Outputs::kAll, form};
  }
  const bool wants_logits = part.n_tokens == task.pending() && task.request.options.max_tokens > 0;
  return {&task.sequence, std::span(task.tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(part.n_tokens)),
          wants_logits ? Outputs::kLast : Outputs::kNone, form};
}

/// Runs the parts together; if that fails, one by one, so that the one to blame fails alone. False if the step was
/// ended before its time: then nothing has changed.
bool Scheduler::Impl::evaluate(std::span<const Part> parts, bool is_long) {
  std::vector<StepPart> step;
  for (const Part& part : parts) step.push_back(step_part(part));
  const bool only_answers = std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.is_answer(); });
  // The MTP block reads prompts even while it rests: it may be asked again before their answers end.
  const bool runs_mtp = engine.has_mtp() && drafts.mode() != DraftMode::kOff && (!only_answers || drafts.mtp_pays());
  const Clock::time_point start = Clock::now();
  try {
    struct InProgress {
      std::span<const Part>& parts;
      ~InProgress() { parts = {}; }
    };
    std::optional<InProgress> in_progress;
    std::function<bool()> go_on;
    if (is_long) {
      long_step = parts;
      in_progress.emplace(long_step);
      go_on = [this] { return between(); };
    }
    const StepStatus status = engine.step(step, go_on, runs_mtp);
    if (status == StepStatus::kStopped) return false;
    FATHOM_CHECK(status == StepStatus::kDone, "pages were made free for this step");
  } catch (const std::exception& e) {
    if (parts.size() == 1) {
      const auto* error = dynamic_cast<const Error*>(&e);
      fail(*parts[0].task, error != nullptr ? *error : Error(ErrorCode::kRuntime, std::string("engine: ") + e.what()));
      return true;
    }
    for (const Part& part : parts) {
      part.task->sequence.truncate(part.task->sequence.length());  // gives reservations back
    }
    for (size_t i = 0; i < parts.size(); ++i) evaluate(parts.subspan(i, 1), false);
    return true;
  }
  DraftPolicy::Outcome outcome;
  outcome.seconds = seconds_between(start, Clock::now());
  outcome.n_answers = parts.size();
  const std::vector<Evaluated> evaluated = take_outputs(parts, step, outcome);
  if (runs_mtp) {
    const Clock::time_point begin = Clock::now();
    run_mtp(evaluated);
    if (only_answers) drafts.measured_mtp(seconds_between(begin, Clock::now()));
  } else {
    for (const Evaluated& e : evaluated) e.task->mtp_draft.reset();
  }
  if (only_answers) drafts.measured(outcome);
  for (const Evaluated& e : evaluated) {
    Task& task = *e.task;
    if (task.writer.ended()) {
      finish(task, task.writer.finish());
    } else if (task.pending() == 0) {  // only the prompt was wanted
      prompt_done(task);
      finish(task, FinishReason::kLength);
    } else if (e.has_more && task.request.use_cache) {
      // Whole pages only: the rest of the last one is written next, and would have to be copied.
      cache.keep_beginning(
          task.evaluated_keys().first(static_cast<size_t>(task.sequence.length() / kPageTokens * kPageTokens)),
          task.sequence);
    }
  }
  return true;
}

/// What the logits of a step say. The parts of those who go on, or have ended and are still to be finished.
std::vector<Evaluated> Scheduler::Impl::take_outputs(std::span<const Part> parts, std::span<const StepPart> step,
                                                     DraftPolicy::Outcome& outcome) {
  std::vector<Evaluated> evaluated;
  int64_t next_output = 0, next_row = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    Task& task = *parts[i].task;
    const int64_t n = parts[i].n_tokens, first_position = task.sequence.length() - n;
    const int64_t first_row = std::exchange(next_row, next_row + n);
    const bool has_logits = step[i].outputs != Outputs::kNone;
    shares.charge(task.request.user, task.answering() ? 0 : static_cast<double>(n));
    if (!task.answering()) task.evaluated_tokens += n;
    if (has_logits) {
      const int64_t n_outputs = step[i].outputs == Outputs::kAll ? n : 1;
      const int64_t n_taken = take_answers(task, std::exchange(next_output, next_output + n_outputs), outcome);
      if (n_taken == 0) continue;  // it failed, and is gone
      if (n_outputs > 1) task.sequence.truncate(first_position + n_taken);
    } else if (!task.answering()) {
      task.channel->push(PrefillEvent{std::min(task.sequence.length(), task.n_prompt()), task.n_prompt()});
    }
    totals.longest_sequence = std::max(totals.longest_sequence, task.sequence.length());
    evaluated.push_back({&task, first_position, first_row, !has_logits});
  }
  outcome.rows = static_cast<size_t>(next_row);
  return evaluated;
}

/// Tokens from the logits of a part, from first_output on, as long as they are what was guessed. How many; 0 if the
/// request failed. Its guesses are used up.
int64_t Scheduler::Impl::take_answers(Task& task, int64_t first_output, DraftPolicy::Outcome& outcome) {
  const std::vector<Guess> guesses = std::exchange(task.guesses, {});
  if (!guesses.empty()) {
    ++totals.drafts_total;
    totals.draft_tokens_total += guesses.size();
    task.generation.draft_tokens += std::ssize(guesses);
    if (guesses[0].source == DraftSource::kMtp) ++outcome.mtp_guesses;
  }
  for (size_t n = 0;; ++n) {
    if (!take_logits(task, engine.logits(first_output + static_cast<int64_t>(n)))) return 0;
    const auto n_taken = static_cast<int64_t>(n) + 1;
    if (task.writer.ended() || n == guesses.size()) return n_taken;
    const bool is_right = task.tokens.back() == guesses[n].id;
    drafts.judged(guesses[n].source, guesses[n].hint, is_right);
    if (!is_right) return n_taken;
    ++totals.accepted_tokens_total;
    ++task.generation.accepted_tokens;
    outcome.mtp_right += guesses[n].source == DraftSource::kMtp ? 1 : 0;
  }
}

/// The MTP block after a step: rows of its cache, and for answers that go on a guess at the token after the last.
void Scheduler::Impl::run_mtp(std::span<const Evaluated> evaluated) {
  std::vector<DraftPart> asked;
  std::vector<Task*> tasks;
  for (const Evaluated& e : evaluated) {
    Task& task = *e.task;
    task.mtp_draft.reset();
    const int64_t n = std::min(task.sequence.length(), std::ssize(task.tokens) - 1) - e.first_position;
    if (n <= 0) continue;
    const bool wants_draft = task.answering() && !task.writer.ended();
    asked.push_back({&task.sequence, e.first_position, e.first_row,
                     std::span(task.tokens).subspan(static_cast<size_t>(e.first_position) + 1, static_cast<size_t>(n)),
                     wants_draft ? 1 : 0});
    if (wants_draft) tasks.push_back(&task);
  }
  if (asked.empty()) return;
  const std::vector<Draft> drafted = engine.draft(asked);
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i]->mtp_draft = drafted[i];
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

/// The next token of an answer. False: the request failed, and is gone.
bool Scheduler::Impl::take_logits(Task& task, std::span<const float> logits) {
  const bool is_first = !task.answering();
  TokenEvent event;
  try {
    const TokenChoice choice = task.writer.add(logits, std::ssize(task.tokens) < engine.context());
    event.id = choice.id;
    event.logprob = choice.logprob;
    if (task.request.top_logprobs > 0) event.top_logprobs = top_logprobs(logits, task.request.top_logprobs);
  } catch (const Error& e) {
    fail(task, e);
    return false;
  } catch (const std::exception& e) {
    fail(task, Error(ErrorCode::kRuntime, std::string("constraint: ") + e.what()));
    return false;
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
  return true;
}

}  // namespace fathom
