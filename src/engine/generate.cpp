#include "engine/generate.h"

#include <utility>

#include "core/error.h"

namespace fathom {

SchedulerOptions one_reader() {
  SchedulerOptions options;
  options.reader_patience = std::chrono::hours(24 * 365);  // output may be paused, by a pager or Ctrl-S
  return options;
}

Generation generate(Scheduler& scheduler, Request request, const GenerateCallbacks& callbacks) {
  auto submitted = scheduler.submit(std::move(request));
  FATHOM_CHECK(std::holds_alternative<RequestHandle>(submitted), "a scheduler with one user has room");
  RequestHandle handle = std::get<RequestHandle>(std::move(submitted));
  for (;;) {
    if (callbacks.interrupted && callbacks.interrupted()) handle.cancel();
    std::optional<Event> event = handle.next(kInterruptLook);
    if (!event) continue;
    if (const auto* started = std::get_if<StartedEvent>(&*event)) {
      if (callbacks.on_prefill)
        callbacks.on_prefill(static_cast<uint64_t>(started->cached_tokens),
                             static_cast<uint64_t>(started->prompt_tokens));
    } else if (const auto* prefill = std::get_if<PrefillEvent>(&*event)) {
      if (callbacks.on_prefill)
        callbacks.on_prefill(static_cast<uint64_t>(prefill->done_tokens), static_cast<uint64_t>(prefill->total_tokens));
    } else if (const auto* token = std::get_if<TokenEvent>(&*event)) {
      if (callbacks.on_text && !token->text.empty()) callbacks.on_text(token->text);
    } else if (const auto* failed = std::get_if<FailedEvent>(&*event)) {
      throw failed->error;
    } else {
      return std::get<FinishedEvent>(std::move(*event)).generation;
    }
  }
}

}  // namespace fathom
