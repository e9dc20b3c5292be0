#pragma once
#include "graph/graph.h"

namespace fathom {

/// W_UK and W_UV as the file holds them: kv_b [H * (N + V), C], or k_b [H, C, N] with v_b [H, V, C].
struct LatentProjections {
  Tensor kv_b, k_b, v_b;
};

/// Multi-head latent attention of each token over its sequence's cached rows 0..position (its own row must be stored).
/// score(h, s) = scale * (q_nope_h . W_UK_h c_s + q_pe_h . k_pe_s); softmax in f32; out_h = sum_s p_s W_UV_h c_s.
/// q [T, H, N + R] f32 with its last R rotated; cache [pages, page_tokens, C + R] -> [T, H * V] f32.
/// chosen [T, top_k] I32 of index_rows (tokens_per_row 1): a token sees those rows alone; empty: all. A token that sees
/// no more than top_k rows gets the same bits either way. Source: arXiv:2405.04434, section 2.1.
Tensor latent_attention(Graph& g, const Tensor& q, const LatentProjections& w, const Tensor& cache,
                        const StepTensors& step, int64_t value_dim, float scale, AttentionForm form,
                        const Tensor& chosen = {});

/// Plain multi-head attention over cached keys and values: q [T, H, N] f32, cache [pages, page_tokens, 2 * H * N] ->
/// [T, H * N].
Tensor multi_head_attention(Graph& g, const Tensor& q, const Tensor& cache, const StepTensors& step, float scale);

}  // namespace fathom
