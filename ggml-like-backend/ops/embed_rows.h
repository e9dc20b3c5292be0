#pragma once
#include "graph/graph.h"

namespace fathom {

/// Rows of an embedding table, each `copies` times side by side. table [W, D] any type, ids [T] I32 in [0, W) ->
/// [T, copies * D] f32.
Tensor embed_rows(Graph& g, const Tensor& table, const Tensor& ids, int copies = 1);

}  // namespace fathom
