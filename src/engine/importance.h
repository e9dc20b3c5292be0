// What a text shows about a model's weights: which columns matter to each matrix, and which experts do little.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "convert/imatrix.h"
#include "engine/engine.h"

namespace fathom {

/// The text is read in windows, each by itself and from BOS where the model's file asks for one; what is left over is
/// not.
struct ReadingOptions {
  int64_t window = 512;  ///< at least kMinWindow, at most the engine's context
  std::optional<int64_t> max_windows;
};

struct Reading {
  int64_t n_windows = 0;
  double perplexity =
      0;  ///< of all tokens but the first of each window: far from the model's usual one, the text does not suit it
};

/// Squares of the columns that each matrix is multiplied with, by tensor name: routed experts by the tokens they were
/// chosen for, W_UK and W_UV by head (under attn_k_b and attn_v_b, and the whole as attn_kv_b, whichever the file has).
/// The head's are left out, as llama-imatrix does. The MTP block's are there if the engine has one. Throws
/// Error{kUsage} for a text or window that does not fit, Error{kInterrupted} if `stop` said so, Error{kRuntime} for
/// values that are not finite.
struct ImportanceReport : Reading {
  std::map<std::string, InputSquares> tensors;
};
ImportanceReport measure_importance(Engine& engine, std::span<const int32_t> tokens, const ReadingOptions& options,
                                    const Progress& progress, const std::function<bool()>& stop);

/// What an expert added to the tokens that chose it: the mean over them of router weight times the norm of its output,
/// 0 where none did. Source: arXiv:2510.13999 (REAP).
struct ExpertReport : Reading {
  std::map<std::string, std::vector<double>> saliency;  ///< by the name of a layer's down matrices, for each expert
  std::map<std::string, std::vector<int64_t>> n_chosen;
};
ExpertReport measure_experts(Engine& engine, std::span<const int32_t> tokens, const ReadingOptions& options,
                             const Progress& progress, const std::function<bool()>& stop);

}  // namespace fathom
