// Models of a released shape with random weights, made in memory: how fast would the real one run here?
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace fathom {

std::vector<std::string> synthetic_shapes();  ///< "v2-lite", "v2", "v3", "v3.2", "v4-flash"

struct SyntheticOptions {
  std::string shape;
  std::string type = "q4_k_m";      ///< a type of quantized files, or the mix q4_k_m as converters write it
  std::optional<int64_t> n_layers;  ///< fewer than the shape has; nothing: all
  bool only_shapes = false;         ///< tensors without data, for sums over the full shape
};

/// Throws Error{kUsage} for an unknown shape or type, Error{kNoMemory} naming the bytes needed and available. Every
/// weight decodes to a normal distribution of deviation 1/sqrt(row length), so that activations keep their size.
ModelSource synthetic_model(const SyntheticOptions& options);

}  // namespace fathom
