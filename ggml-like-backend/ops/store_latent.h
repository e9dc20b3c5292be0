#pragma once
#include "graph/graph.h"

namespace fathom {

/// Puts each token's latent row into the cache: [ rms_norm(kv_a[:, :C]) * norm_weight | rotated kv_a[:, C:] ].
/// With norm_weight [C + R] the whole row is normed before its last R are rotated (V4's shared key and value).
/// kv_a [T, C + R] f32, norm_weight [C] f32, rope_table [T, R/2, 2], slots [T] I32, cache [pages, page_tokens, C + R].
void store_latent(Graph& g, const Tensor& kv_a, const Tensor& norm_weight, float eps, const Tensor& rope_table,
                  RopePairing pairing, const Tensor& slots, const Tensor& cache);

/// The same for plain heads: row = [ all keys | all values ]. k, v [T, H, N] f32 (k rotated), cache [.., .., 2 * H *
/// N].
void store_key_value(Graph& g, const Tensor& k, const Tensor& v, const Tensor& slots, const Tensor& cache);

}  // namespace fathom
