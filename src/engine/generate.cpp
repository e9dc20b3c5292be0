#include "engine/generate.h"

#include <exception>
#include <utility>

#include "core/error.h"

namespace fathom {
namespace {

/// The events of one answer, as they come.
class AnswerReader {
 public:
  AnswerReader(RequestHandle handle, const GenerateCallbacks& callbacks)
      : handle_(std::move(handle)), callbacks_(callbacks) {}

  bool done() const { return handle_.done(); }
  /// Never throws: it may be called from inside a step.
  void look() noexcept {
    try {
      if (callbacks_.interrupted && callbacks_.interrupted()) handle_.cancel();
      while (std::optional<Event> event = handle_.next(std::chrono::milliseconds(0))) take(std::move(*event));
    } catch (...) {
      if (!problem_) problem_ = std::current_exception();
      handle_.cancel();
    }
  }
  Generation result() {
    if (problem_) std::rethrow_exception(problem_);
    return std::move(generation_);
  }

 private:
  void take(Event event) {
    if (const auto* started = std::get_if<StartedEvent>(&event)) {
      on_prefill(started->cached_tokens, started->prompt_tokens);
    } else if (const auto* prefill = std::get_if<PrefillEvent>(&event)) {
      on_prefill(prefill->done_tokens, prefill->total_tokens);
    } else if (const auto* token = std::get_if<TokenEvent>(&event)) {
      if (callbacks_.on_text && !token->text.empty() && !problem_) callbacks_.on_text(token->text);
    } else if (const auto* failed = std::get_if<FailedEvent>(&event)) {
      throw failed->error;
    } else {
      generation_ = std::move(std::get<FinishedEvent>(event).generation);
    }
  }
  void on_prefill(int64_t done, int64_t total) const {
    if (callbacks_.on_prefill) callbacks_.on_prefill(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
  }

  RequestHandle handle_;
  const GenerateCallbacks& callbacks_;
  Generation generation_;
  std::exception_ptr problem_;
};

}  // namespace

SchedulerOptions one_reader(DraftMode draft) {
  SchedulerOptions options;
  options.own_thread = false;
  options.draft = draft;
  options.reader_patience = std::chrono::hours(24 * 365);  // output may be paused, by a pager or Ctrl-S
  return options;
}

Generation generate(Scheduler& scheduler, Request request, const GenerateCallbacks& callbacks) {
  auto submitted = scheduler.submit(std::move(request));
  FATHOM_CHECK(std::holds_alternative<RequestHandle>(submitted), "a scheduler with one user has room");
  AnswerReader reader(std::get<RequestHandle>(std::move(submitted)), callbacks);
  const std::function<void()> look = [&reader] { reader.look(); };
  while (!reader.done()) {
    scheduler.work(look);
    reader.look();
  }
  return reader.result();
}

}  // namespace fathom
