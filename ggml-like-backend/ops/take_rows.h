#pragma once
#include "graph/graph.h"

namespace fathom {

/// Chosen rows: x [T, D] f32, rows [P] I32 in [0, T) -> [P, D] f32.
Tensor take_rows(Graph& g, const Tensor& x, const Tensor& rows);

}  // namespace fathom
