// One answer at a time, for a program with one user: a request to a Scheduler and its events, read to the end.
#pragma once

#include <functional>
#include <string_view>

#include "engine/scheduler.h"

namespace fathom {

struct GenerateCallbacks {
  Progress on_prefill;                                 ///< prompt tokens done, cached ones included, of all
  std::function<void(std::string_view text)> on_text;  ///< pieces of valid UTF-8, stop strings held back
  std::function<bool()> interrupted;                   ///< asked between steps and inside long ones; ends the answer
};

/// Options of a scheduler for generate(): no thread of its own, and one reader, as slow as they like.
SchedulerOptions one_reader(DraftMode draft = DraftMode::kAuto);

/// The answer to `request`, which finds what the scheduler remembers of those before it. The engine and the callbacks
/// run on the calling thread; what they throw ends the request. Throws what Scheduler::submit and a failed request
/// throw.
Generation generate(Scheduler& scheduler, Request request, const GenerateCallbacks& callbacks);

}  // namespace fathom
