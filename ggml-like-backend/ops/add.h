#pragma once
#include "graph/graph.h"

namespace fathom {

/// a + b, both [T, D] f32 -> [T, D] f32.
Tensor add(Graph& g, const Tensor& a, const Tensor& b);

}  // namespace fathom
