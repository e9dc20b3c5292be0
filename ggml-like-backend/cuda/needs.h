// What nodes need of a device, told without one.
#pragma once

#include <cstddef>
#include <span>

#include "core/node.h"

namespace fathom::cuda {

/// Throws Error{kModel} naming operation and type if a node has no kernel.
void check_supported(const Node& node);

/// Memory of the kernels besides the tensors of the nodes.
struct Needs {
  size_t workspace_bytes = 0;
  size_t rows_bytes = 0;  ///< of each of the two sets of rows in int8
};
/// Throws Error{kUsage} for steps of more tokens than kernels can count.
Needs needs_of(std::span<const Node> nodes);

}  // namespace fathom::cuda
