#pragma once
#include "graph/graph.h"

namespace fathom {

/// x times the transposed weight: x [T, I] f32, weight [O, I] any type -> [T, O] f32.
/// Quantized weights may be multiplied with activations rounded to int8 blocks; the reference keeps f32.
Tensor linear(Graph& g, const Tensor& x, const Tensor& weight);

}  // namespace fathom
