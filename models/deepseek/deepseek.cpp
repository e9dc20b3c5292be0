// START HERE: embed -> blocks -> norm -> head. Every line is one step with its shape; legend in models/README.md.
#include "deepseek/deepseek.h"

#include "ops/add.h"
#include "ops/embed_rows.h"
#include "ops/latent_attention.h"
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
  const Step& step;
  Tensor rope;  ///< [T, R/2, 2]

  float eps() const { return static_cast<float>(config.rms_eps); }
};

/// Multi-head latent attention. x [T, D] -> [T, D]
Tensor mla(Graph& g, const MlaWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  const Config& c = s.config;
  Tensor kv_a = linear(g, x, w.kv_a_proj);  // [T, C + R]
  Tensor q = c.q_lora_rank == 0
                 ? linear(g, x, w.q_proj)  // [T, H * (N + R)]
                 : linear(g, rms_norm(g, linear(g, x, w.q_a_proj), w.q_a_layernorm, s.eps()), w.q_b_proj);
  q = q.reshaped({q.dim(0), c.n_heads, c.qk_head_dim()});
  store_latent(g, kv_a, w.kv_a_layernorm, s.eps(), s.rope, RopePairing::kAdjacent, s.step.where.slots, cache);
  q = rotate_heads(g, q, s.rope, static_cast<int>(c.qk_nope_head_dim), RopePairing::kAdjacent);  // [T, H, N + R]
  Tensor heads = latent_attention(g, q, w.kv_b, cache, s.step.where, c.v_head_dim, c.softmax_scale(), s.step.attention);
  return linear(g, heads, w.o_proj);  // [T, D]
}

void store_keys_values(Graph& g, const MhaWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  const Shape heads{x.dim(0), s.config.n_heads, s.config.qk_head_dim()};
  const int first = static_cast<int>(s.config.qk_nope_head_dim);
  Tensor k =
      rotate_heads(g, linear(g, x, w.k_proj).reshaped(heads), s.rope, first, RopePairing::kAdjacent);  // [T, H, N]
  Tensor v = linear(g, x, w.v_proj).reshaped(heads);                                                   // [T, H, N]
  store_key_value(g, k, v, s.step.where.slots, cache);
}

/// V1's multi-head attention. x [T, D] -> [T, D]
Tensor mha(Graph& g, const MhaWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  const Shape heads{x.dim(0), s.config.n_heads, s.config.qk_head_dim()};
  const int first = static_cast<int>(s.config.qk_nope_head_dim);
  store_keys_values(g, w, s, x, cache);
  Tensor q =
      rotate_heads(g, linear(g, x, w.q_proj).reshaped(heads), s.rope, first, RopePairing::kAdjacent);     // [T, H, N]
  return linear(g, multi_head_attention(g, q, cache, s.step.where, s.config.softmax_scale()), w.o_proj);  // [T, D]
}

/// Mixture of experts. h [T, D] -> [T, D]
Tensor moe(Graph& g, const MoeWeights& w, const LayerStep& s, const Tensor& h) {
  Tensor logits = linear(g, h, w.gate);                                                        // [T, E]
  ExpertRoutes routes = route_experts(g, logits, w.e_score_correction_bias, s.config.router);  // [T, K]
  return moe_ffn(g, h, routes, w.experts, w.shared_experts);                                   // [T, D]
}

Tensor attention(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  Tensor h = rms_norm(g, x, w.input_layernorm, s.eps());  // [T, D]
  return s.config.attention == Attention::kLatent ? mla(g, w.mla, s, h, cache) : mha(g, w.mha, s, h, cache);
}

Tensor feed_forward(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x) {
  Tensor h = rms_norm(g, x, w.post_attention_layernorm, s.eps());  // [T, D]
  return w.is_moe() ? moe(g, w.moe, s, h) : gated_ffn(g, h, w.mlp);
}

/// The last layer of a step without outputs: its cache rows are wanted, nothing else.
void store_only(Graph& g, const BlockWeights& w, const LayerStep& s, const Tensor& x, const Tensor& cache) {
  Tensor h = rms_norm(g, x, w.input_layernorm, s.eps());  // [T, D]
  if (s.config.attention == Attention::kLatent) {
    Tensor kv_a = linear(g, h, w.mla.kv_a_proj);  // [T, C + R]
    store_latent(g, kv_a, w.mla.kv_a_layernorm, s.eps(), s.rope, RopePairing::kAdjacent, s.step.where.slots, cache);
  } else {
    store_keys_values(g, w.mha, s, h, cache);
  }
}

}  // namespace

Tensor forward(Graph& g, const Model& model, const Step& step) {
  const Weights& w = model.weights;
  const LayerStep s{model.config, step, rope_table(g, step.where.positions, w.rope_frequencies)};
  const size_t last = w.layers.size() - 1;
  const bool has_outputs = static_cast<bool>(step.output_rows);

  Tensor x = embed_rows(g, w.embed_tokens, step.token_ids);  // [T, D]
  for (size_t i = 0; i < last; ++i) {
    x = add(g, x, attention(g, w.layers[i], s, x, step.caches[i]));  // [T, D]
    x = add(g, x, feed_forward(g, w.layers[i], s, x));               // [T, D]
  }
  if (!has_outputs) {
    store_only(g, w.layers[last], s, x, step.caches[last]);
    return {};
  }
  // After the last attention no token needs the others: only the wanted rows go on.
  x = add(g, x, attention(g, w.layers[last], s, x, step.caches[last]));  // [T, D]
  x = take_rows(g, x, step.output_rows);                                 // [P, D]
  x = add(g, x, feed_forward(g, w.layers[last], s, x));                  // [P, D]
  return linear(g, rms_norm(g, x, w.norm, s.eps()), w.lm_head);          // [P, W]
}

}  // namespace fathom::deepseek
