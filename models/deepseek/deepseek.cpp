// START HERE (V4: deepseek_v4.cpp): embed -> blocks -> norm -> head. Every line is one step with its shape; legend in
// models/README.md.
#include "deepseek/deepseek.h"

#include "deepseek/forward_v4.h"
#include "ops/add.h"
#include "ops/concat_rows.h"
#include "ops/embed_rows.h"
#include "ops/index_rows.h"
#include "ops/latent_attention.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/store_latent.h"
#include "ops/take_rows.h"

namespace fathom::deepseek {
namespace {

/// What all layers of a step share.
struct LayerStep {
  const Config& config;
  const StepTensors& where;
  AttentionForm form;
  bool selects;  ///< Step::selects
  Tensor rope;   ///< [T, R/2, 2]

  float eps() const { return static_cast<float>(config.rms_eps); }
};

/// What a layer has in the cache.
struct LayerCache {
  Tensor rows;   ///< latents with their shared keys, or keys and values
  Tensor index;  ///< the indexer's keys, or empty
};

LayerCache layer_cache(const Step& step, const Config& c, size_t layer_idx) {
  return {step.caches[layer_idx],
          c.has_indexer() ? step.caches[static_cast<size_t>(c.n_layers) + layer_idx] : Tensor()};
}

/// Keys for the indexer: [rotated R | DI - R], rotated in halves where the attention's own are rotated in pairs.
/// k [T, DI] of wk
void store_index_keys(Graph& g, const IndexerWeights& w, const LayerStep& s, Tensor k, const Tensor& cache) {
  constexpr float kEps = 1e-6F;                         // of a LayerNorm, not the model's rms_norm_eps
  k = layer_norm(g, k, w.k_norm, w.k_norm_bias, kEps);  // [T, DI]
  k = rotate_heads(g, k.reshaped({k.dim(0), 1, k.dim(1)}), s.rope, 0, RopePairing::kHalves);  // [T, 1, DI]
  store_rows(g, k.reshaped({k.dim(0), k.dim(2)}), s.where.slots, cache);
}

/// The rows that each token may see. q [T, HI * DI] of wq_b, head_weights [T, HI] of weights_proj -> [T, index_topk]
/// The reference also scales the head weights by (HI * DI)^-0.5, which changes no choice, and rotates queries and keys
/// by a Hadamard matrix, which changes no product and serves its FP8 cache alone. Source: arXiv:2512.02556,
/// section 2.1.
Tensor choose_rows(Graph& g, const LayerStep& s, Tensor q, const Tensor& head_weights, const Tensor& cache) {
  const Config& c = s.config;
  q = q.reshaped({q.dim(0), c.index_n_heads, c.index_head_dim});
  q = rotate_heads(g, q, s.rope, 0, RopePairing::kHalves);  // [T, HI, DI]
  return index_rows(g, q, head_weights, cache, s.where, 1, c.index_topk);
}

/// Multi-head latent attention. x [T, D] -> [T, D]
/// Products of one x stand side by side: a backend may compute them together.
Tensor mla(Graph& g, const MlaWeights& w, const LayerStep& s, const Tensor& x, const LayerCache& cache) {
  const Config& c = s.config;
  Tensor kv_a = linear(g, x, w.kv_a_proj);  // [T, C + R]
  Tensor index_k, index_weights, index_q;
  if (c.has_indexer()) index_k = linear(g, x, w.indexer.wk);            // [T, DI]
  if (s.selects) index_weights = linear(g, x, w.indexer.weights_proj);  // [T, HI]
  Tensor q_latent;                                                      // [T, Q]
  if (c.q_lora_rank > 0) q_latent = rms_norm(g, linear(g, x, w.q_a_proj), w.q_a_layernorm, s.eps());
  Tensor q = q_latent ? linear(g, q_latent, w.q_b_proj) : linear(g, x, w.q_proj);  // [T, H * (N + R)]
  if (s.selects) index_q = linear(g, q_latent, w.indexer.wq_b);                    // [T, HI * DI]
  if (c.has_indexer()) store_index_keys(g, w.indexer, s, index_k, cache.index);
  q = q.reshaped({q.dim(0), c.n_heads, c.qk_head_dim()});
  store_latent(g, kv_a, w.kv_a_layernorm, s.eps(), s.rope, RopePairing::kAdjacent, s.where.slots, cache.rows);
  q = rotate_heads(g, q, s.rope, static_cast<int>(c.qk_nope_head_dim), RopePairing::kAdjacent);  // [T, H, N + R]
  Tensor chosen;                                                                                 // [T, index_topk]
  if (s.selects) chosen = choose_rows(g, s, index_q, index_weights, cache.index);
  Tensor heads = latent_attention(g, q, w.kv_b, cache.rows, s.where, c.v_head_dim, c.softmax_scale(), s.form,
                                  chosen);  // [T, H * V]
  return linear(g, heads, w.o_proj);        // [T, D]
}

void store_keys_values(Graph& g, const MhaWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  const Shape heads{x.dim(0), s.config.n_heads, s.config.qk_head_dim()};
  const int first = static_cast<int>(s.config.qk_nope_head_dim);
  Tensor k =
      rotate_heads(g, linear(g, x, w.k_proj).reshaped(heads), s.rope, first, RopePairing::kAdjacent);  // [T, H, N]
  Tensor v = linear(g, x, w.v_proj).reshaped(heads);                                                   // [T, H, N]
  store_key_value(g, k, v, s.where.slots, cache);
}

/// V1's multi-head attention. x [T, D] -> [T, D]
Tensor mha(Graph& g, const MhaWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  const Shape heads{x.dim(0), s.config.n_heads, s.config.qk_head_dim()};
  const int first = static_cast<int>(s.config.qk_nope_head_dim);
  store_keys_values(g, w, s, x, cache);
  Tensor q =
      rotate_heads(g, linear(g, x, w.q_proj).reshaped(heads), s.rope, first, RopePairing::kAdjacent);  // [T, H, N]
  return linear(g, multi_head_attention(g, q, cache, s.where, s.config.softmax_scale()), w.o_proj);    // [T, D]
}

/// Mixture of experts. h [T, D] -> [T, D]
Tensor moe(Graph& g, const MoeWeights& w, const LayerStep& s, const Tensor& h) {
  Tensor logits = linear(g, h, w.gate);                                                        // [T, E]
  ExpertRoutes routes = route_experts(g, logits, w.e_score_correction_bias, s.config.router);  // [T, K]
  return moe_ffn(g, h, routes, w.experts, w.shared_experts);                                   // [T, D]
}

Tensor attention(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x, const LayerCache& cache) {
  Tensor h = rms_norm(g, x, w.input_layernorm, s.eps());  // [T, D]
  return s.config.attention == Attention::kLatent ? mla(g, w.mla, s, h, cache) : mha(g, w.mha, s, h, cache.rows);
}

Tensor feed_forward(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x) {
  Tensor h = rms_norm(g, x, w.post_attention_layernorm, s.eps());  // [T, D]
  return w.is_moe() ? moe(g, w.moe, s, h) : gated_ffn(g, h, w.mlp);
}

/// The last layer of a step without outputs: its cache rows are wanted, nothing else.
void store_only(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x, const LayerCache& cache) {
  Tensor h = rms_norm(g, x, w.input_layernorm, s.eps());  // [T, D]
  if (s.config.attention == Attention::kLatent) {
    Tensor kv_a = linear(g, h, w.mla.kv_a_proj);  // [T, C + R]
    store_latent(g, kv_a, w.mla.kv_a_layernorm, s.eps(), s.rope, RopePairing::kAdjacent, s.where.slots, cache.rows);
    if (cache.index) store_index_keys(g, w.mla.indexer, s, linear(g, h, w.mla.indexer.wk), cache.index);
  } else {
    store_keys_values(g, w.mha, s, h, cache.rows);
  }
}

}  // namespace

Tensor forward(Graph& g, const Model& model, const Step& step) {
  if (model.config.v4) return forward_v4(g, model, step);
  const Weights& w = model.weights;
  const LayerStep s{model.config, step.where, step.attention, step.selects,
                    rope_table(g, step.where.positions, w.rope_frequencies)};
  const size_t last = w.layers.size() - 1;
  const bool has_outputs = static_cast<bool>(step.output_rows);

  Tensor x = embed_rows(g, w.embed_tokens, step.token_ids);  // [T, D]
  for (size_t i = 0; i < last; ++i) {
    x = add(g, x, attention(g, w.layers[i], s, x, layer_cache(step, s.config, i)));  // [T, D]
    x = add(g, x, feed_forward(g, w.layers[i], s, x));                               // [T, D]
  }
  if (step.hidden) {                                                                        // of all tokens
    x = add(g, x, attention(g, w.layers[last], s, x, layer_cache(step, s.config, last)));   // [T, D]
    x = add(g, x, feed_forward(g, w.layers[last], s, x));                                   // [T, D]
    rms_norm(g, x, w.norm, s.eps(), step.hidden);                                           // [T, D]
    return has_outputs ? linear(g, take_rows(g, step.hidden, step.output_rows), w.lm_head)  // [P, W]
                       : Tensor();
  }
  if (!has_outputs) {
    store_only(g, w.layers[last], s, x, layer_cache(step, s.config, last));
    return {};
  }
  // After the last attention no token needs the others: only the wanted rows go on.
  x = add(g, x, attention(g, w.layers[last], s, x, layer_cache(step, s.config, last)));  // [T, D]
  x = take_rows(g, x, step.output_rows);                                                 // [P, D]
  x = add(g, x, feed_forward(g, w.layers[last], s, x));                                  // [P, D]
  return linear(g, rms_norm(g, x, w.norm, s.eps()), w.lm_head);                          // [P, W]
}

Tensor forward_mtp(Graph& g, const Model& model, const MtpStep& step) {
  const MtpWeights& w = *model.weights.mtp;
  const LayerStep s{model.config, step.where, step.attention, step.selects,
                    rope_table(g, step.where.positions, model.weights.rope_frequencies)};
  const LayerCache cache{step.caches[0], step.caches.size() > 1 ? step.caches[1] : Tensor()};
  Tensor e = rms_norm(g, embed_rows(g, w.embed_tokens, step.next_ids), w.enorm, s.eps());  // [T, D]
  Tensor h = rms_norm(g, take_rows(g, step.hidden, step.hidden_rows), w.hnorm, s.eps());   // [T, D]
  Tensor x = linear(g, concat_rows(g, e, h), w.eh_proj);                                   // [T, D]
  if (!step.output_rows) {
    store_only(g, w.block, s, x, cache);
    return {};
  }
  x = add(g, x, attention(g, w.block, s, x, cache));             // [T, D]
  x = take_rows(g, x, step.output_rows);                         // [P, D]
  x = add(g, x, feed_forward(g, w.block, s, x));                 // [P, D]
  return linear(g, rms_norm(g, x, w.norm, s.eps()), w.lm_head);  // [P, W]
}

}  // namespace fathom::deepseek
