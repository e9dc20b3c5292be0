// The windows in which a text is read to measure a model on it, and what its tokens are scored with.
#pragma once

#include <cstdint>
#include <span>

#include "engine/engine.h"

namespace fathom {

/// Fewer tokens leave no half window to score.
inline constexpr int64_t kMinWindow = 4;

/// Throws Error{kUsage} for a window that is too small, larger than the engine's context, or longer than the text.
void check_windows(const Engine& engine, int64_t window, int64_t n_tokens);

/// ln of the sum of e^logit: a token's negative log-likelihood is this less its own logit.
double log_sum_exp(std::span<const float> logits);

}  // namespace fathom
