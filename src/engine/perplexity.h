// How well a model predicts a text, and how far its predictions are from those of a reference run.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace fathom {

/// The text, with BOS before it where the model's file asks for one, is cut into windows of `window` tokens without
/// overlap; what is left over at the end is not used. Each window is evaluated by itself, its first token replaced by
/// that BOS, and the predictions of the tokens in its second half are scored, so that each has at least half a window
/// of context: positions window/2 to window - 2 predict the token after them. These are llama.cpp's windows, so that
/// figures can be compared.
struct PerplexityOptions {
  int64_t window = 512;  ///< at least kMinWindow, at most the engine's context
  std::optional<int64_t> max_windows;
  std::string save_logits;  ///< file for the scored logits; empty: none
  std::string reference;    ///< file saved so by another run on the same text: compare; empty: no
};

/// Of one figure over all scored tokens.
struct Distribution {
  double mean = 0, standard_error = 0;
  double median = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;

  static Distribution of(std::vector<double> values);
};

struct PerplexityReport {
  int64_t window = 0, n_windows = 0, n_scored = 0;
  double perplexity = 0;
  double error = 0;  ///< standard error: perplexity times that of the mean negative log-likelihood

  struct Comparison {
    Distribution kl;            ///< KL(reference || this), nats
    double same_top = 0;        ///< share of tokens with the same most likely one, 0..1
    double same_top_error = 0;  ///< standard error
    double reference_perplexity = 0;
    double rms_probability_change = 0;  ///< of the text's tokens, 0..1
  };
  std::optional<Comparison> comparison;
};

/// `tokens` without BOS. `progress` counts tokens; it and `stop` may be empty.
/// Throws Error{kUsage} for a text shorter than a window or windows that do not fit, Error{kModel} for a reference of
/// another text, window or vocabulary, Error{kInterrupted} if `stop` said so, Error{kRuntime} if the model gives NaN or
/// a file cannot be written.
PerplexityReport measure_perplexity(Engine& engine, std::span<const int32_t> tokens, const PerplexityOptions& options,
                                    const Progress& progress, const std::function<bool()>& stop);

}  // namespace fathom
