// A step: which tokens of which requests are evaluated together, and what becomes of the logits.
#include <algorithm>
#include <limits>

#include "core/error.h"
#include "engine/scheduler_impl.h"

namespace fathom {
namespace {

/// A chunk that is split among prompts gives each at least this much.
constexpr int64_t kMinShareTokens = 64;
constexpr int64_t kMinExpandedTokens = 256;
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

}  // namespace fathom
