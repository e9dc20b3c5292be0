// Where weights live: brings a model's tensors from host memory into a device's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "core/backend.h"
#include "deepseek/weights.h"

namespace fathom {

/// Copies every tensor that `weights` uses into one buffer of the backend and lets the tensors view it. Matrices that
/// `nodes` (of a step over these weights) multiply with or look rows up in are stored as the backend likes them, all
/// else as it is. `file` are the tensors that the weights' views lie in (two views of one are copied once, tensors
/// without a view not at all), but for the ones that begin at one of `stay`. Calls progress with bytes done and in all.
/// Throws Error{kNoMemory} with the bytes needed and free.
std::shared_ptr<Buffer> place_weights(deepseek::Weights& weights, const std::map<std::string, Tensor>& file,
                                      std::span<const Node> nodes, const std::set<const std::byte*>& stay,
                                      Backend& backend,
                                      const std::function<void(uint64_t done, uint64_t total)>& progress);

}  // namespace fathom
