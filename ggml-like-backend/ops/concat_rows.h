#pragma once
#include "graph/graph.h"

namespace fathom {

/// Rows side by side: a [T, A] f32, b [T, B] f32 -> [T, A + B] f32.
Tensor concat_rows(Graph& g, const Tensor& a, const Tensor& b);

}  // namespace fathom
