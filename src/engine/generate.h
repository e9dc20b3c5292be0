// One answer at a time, for a program with one user: a request to a Scheduler and its events, read to the end.
#pragma once

#include <functional>
#include <string_view>

#include "engine/scheduler.h"

namespace fathom {

struct GenerateCallbacks {
  Progress on_prefill;                                 ///< prompt tokens done, cached ones included, of all
  std::function<void(std::string_view text)> on_text;  ///< pieces of valid UTF-8, stop strings held back
  std::function<bool()> interrupted;                   ///< asked at least every kInterruptLook; ends the answer
};

/// How long an interrupt can go unnoticed.
constexpr std::chrono::milliseconds kInterruptLook{20};

/// Options of a scheduler whose answers one person reads, as slowly as they like: nobody else waits for the pages.
SchedulerOptions one_reader();

/// The answer to `request`, which finds what the scheduler remembers of those before it. Callbacks run on the calling
/// thread; what they throw ends the request. Throws what Scheduler::submit and a failed request throw.
Generation generate(Scheduler& scheduler, Request request, const GenerateCallbacks& callbacks);

}  // namespace fathom
