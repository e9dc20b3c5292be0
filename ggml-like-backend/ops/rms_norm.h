#pragma once
#include "graph/graph.h"

namespace fathom {

/// Root-mean-square norm of each row: y[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + eps) * weight.
/// x [T, D] f32, weight [D] f32 or empty (ones), eps > 0 in squared units of x -> [T, D] f32. Source: arXiv:1910.07467.
Tensor rms_norm(Graph& g, const Tensor& x, const Tensor& weight, float eps);
/// The same into memory that outlives the graph: out [T, D] f32.
Tensor rms_norm(Graph& g, const Tensor& x, const Tensor& weight, float eps, const Tensor& out);

}  // namespace fathom
