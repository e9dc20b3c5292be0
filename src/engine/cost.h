// Bytes and operations of a step, from the shapes of the weights.
#pragma once

#include "cache/pages.h"
#include "deepseek/deepseek.h"
#include "engine/engine.h"

namespace fathom {

/// See StepCost and Engine::cost.
StepCost step_cost(const deepseek::Model& model, const CacheLayout& layout, int64_t n_sequences, int64_t tokens_each,
                   int64_t depth);

}  // namespace fathom
