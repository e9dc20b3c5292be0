#pragma once
#include "graph/graph.h"

namespace fathom {

/// x times the transposed weight: x [T, I] f32, weight [O, I] any type -> [T, O] f32.
/// Quantized weights may be multiplied with activations rounded to int8 blocks; the reference keeps f32.
Tensor linear(Graph& g, const Tensor& x, const Tensor& weight);

/// The same for G diagonal blocks: x [T, G * I], weight [G * O, I] -> [T, G * O]; group g of x meets rows g * O .. of
/// the weight. G is x's width over the weight's, which must divide its rows too.
Tensor grouped_linear(Graph& g, const Tensor& x, const Tensor& weight);

}  // namespace fathom
