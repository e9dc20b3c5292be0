#pragma once
#include "graph/graph.h"

namespace fathom {

/// Cosines and sines of position * frequency, shared by all layers of a step.
/// positions [T] I32, frequencies [R/2] f32 in radians per position -> [T, R/2, 2] f32. Angles are formed in double.
Tensor rope_table(Graph& g, const Tensor& positions, const Tensor& frequencies);

/// Rotates dimensions [first_dim, first_dim + R) of every head; the others pass. x [T, H, N] f32, table [T, R/2, 2] ->
/// [T, H, N] f32. Pair i turns by its angle: y0 = x0*cos - x1*sin, y1 = x0*sin + x1*cos. Source: arXiv:2104.09864.
/// inverse: by the negative angles, which undoes it.
Tensor rotate_heads(Graph& g, const Tensor& x, const Tensor& table, int first_dim, RopePairing pairing,
                    bool inverse = false);

}  // namespace fathom
