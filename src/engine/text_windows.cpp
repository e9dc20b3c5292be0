#include "engine/text_windows.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"

namespace fathom {

void check_windows(const Engine& engine, int64_t window, int64_t n_tokens) {
  if (window < kMinWindow || window > engine.context()) {
    // Where --ctx made the context as small as the window, the context is no bound to tell of.
    const std::string most = engine.context() >= kMinWindow ? " to " + std::to_string(engine.context()) : " or more";
    throw Error(ErrorCode::kUsage, "--ctx: out of range for windows of a text; expected " + std::to_string(kMinWindow) +
                                       most + " tokens, got " + std::to_string(window));
  }
  if (n_tokens < window) {
    throw Error(ErrorCode::kUsage, "the text is shorter than one window; expected at least " + std::to_string(window) +
                                       " tokens, got " + std::to_string(n_tokens) +
                                       (window > kMinWindow ? "; try a smaller --ctx" : "; try a longer text"));
  }
}

double log_sum_exp(std::span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return static_cast<double>(max) + std::log(sum);
}

}  // namespace fathom
