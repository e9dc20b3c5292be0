#pragma once
#include "graph/graph.h"

namespace fathom {

/// Rows of an embedding table. table [W, D] any type, ids [T] I32 in [0, W) -> [T, D] f32.
Tensor embed_rows(Graph& g, const Tensor& table, const Tensor& ids);

}  // namespace fathom
