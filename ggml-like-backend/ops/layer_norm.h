#pragma once
#include "graph/graph.h"

namespace fathom {

/// Norm of each row with mean and bias: y[t,:] = (x[t,:] - mean(x[t,:])) / sqrt(variance(x[t,:]) + eps) * weight +
/// bias. x [T, D] f32, weight, bias [D] f32, eps > 0 in squared units of x -> [T, D] f32. Source: arXiv:1607.06450.
Tensor layer_norm(Graph& g, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);

}  // namespace fathom
