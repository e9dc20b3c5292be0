// Prometheus text of the scheduler's counters.
#pragma once

#include <string>

#include "engine/scheduler.h"

namespace fathom {

/// Two families of names, as dashboards exist for both: llamacpp:* of llama.cpp's server, and vllm:* of vLLM with the
/// label model_name. Source of the format: prometheus.io/docs/instrumenting/exposition_formats.
std::string format_metrics(const SchedulerStats& stats, const std::string& model_name);

}  // namespace fathom
