// The forward pass of DeepSeek V4: hyper-connections around attention over a window and compressed rows, and experts.
// Every line is one step with its shape; legend in models/README.md, M residual streams of width D.
#include <cmath>

#include "deepseek/forward_v4.h"
#include "ops/embed_rows.h"
#include "ops/index_rows.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/store_latent.h"
#include "ops/take_rows.h"

namespace fathom::deepseek {
namespace {

/// The arrays of one layer, in the order of Config::cache_rows().
struct LayerCaches {
  Tensor window;               ///< [pages, page_tokens, N]
  CompressorCache compressed;  ///< of layers with compressed rows
  CompressorCache index;       ///< of those that choose among them
};

/// What all layers of a step share.
struct PassV4 {
  const Config& config;
  const V4Config& v4;
  const Weights& weights;
  const Step& step;
  Tensor rope, compress_rope;  ///< [T, R/2, 2]

  float eps() const { return static_cast<float>(config.rms_eps); }
  int64_t ratio(int64_t layer_idx) const { return v4.compress_ratios[static_cast<size_t>(layer_idx)]; }
  const Tensor& rope_of(int64_t layer_idx) const { return ratio(layer_idx) > 0 ? compress_rope : rope; }
  HyperConnectionParams connection() const {
    return {eps(), static_cast<float>(v4.hc_eps), static_cast<int>(v4.hc_sinkhorn_iters)};
  }
};

std::vector<LayerCaches> layer_caches(const PassV4& s) {
  std::vector<LayerCaches> layers;
  auto next = s.step.caches.begin();
  for (int64_t i = 0; i < s.config.n_layers; ++i) {
    LayerCaches layer{*next++, {}, {}};
    if (s.ratio(i) > 0) layer.compressed.pending = *next++, layer.compressed.rows = *next++;
    if (s.v4.has_index(i)) layer.index.pending = *next++, layer.index.rows = *next++;
    layers.push_back(layer);
  }
  return layers;
}

/// Products that make what later tokens need of x.
struct StoredProducts {
  Tensor kv;                       ///< [T, N] the row that is key and value
  CompressorProducts rows, index;  ///< of layers that have them
};

StoredProducts products_to_store(Graph& g, const CompressedAttentionWeights& w, const PassV4& s, int64_t layer_idx,
                                 const Tensor& x) {
  StoredProducts p;
  p.kv = linear(g, x, w.kv_proj);
  if (s.ratio(layer_idx) > 0) p.rows = compressor_products(g, x, w.compressor);
  if (s.v4.has_index(layer_idx)) p.index = compressor_products(g, x, w.indexer.compressor);
  return p;
}

void store(Graph& g, const CompressedAttentionWeights& w, const PassV4& s, int64_t layer_idx, const StoredProducts& p,
           const LayerCaches& caches) {
  const StepTensors& where = s.step.where;
  const int64_t ratio = s.ratio(layer_idx);
  const Tensor& frequencies = s.weights.compress_rope_frequencies;
  store_latent(g, p.kv, w.kv_layernorm, s.eps(), s.rope_of(layer_idx), RopePairing::kAdjacent, where.slots,
               caches.window);
  if (ratio > 0) compress_rows(g, p.rows, w.compressor, frequencies, where, caches.compressed, ratio, s.eps());
  if (s.v4.has_index(layer_idx))
    compress_rows(g, p.index, w.indexer.compressor, frequencies, where, caches.index, ratio, s.eps());
}

/// Attention. x [T, D] -> [T, D]
/// Products of one x stand side by side: a backend may compute them together.
Tensor attention(Graph& g, const CompressedAttentionWeights& w, const PassV4& s, int64_t layer_idx, const Tensor& x,
                 const LayerCaches& caches) {
  const V4Config& v4 = s.v4;
  const int64_t n_tokens = x.dim(0), heads = s.config.n_heads, n = v4.head_dim, ratio = s.ratio(layer_idx);
  const bool selects = v4.has_index(layer_idx) && s.step.selects;
  const Tensor& rope = s.rope_of(layer_idx);
  const auto rotate = [&](const Tensor& t, int64_t width, bool inverse) {
    return rotate_heads(g, t, rope, static_cast<int>(width - s.config.rope.dim), RopePairing::kAdjacent, inverse);
  };
  StoredProducts to_store = products_to_store(g, w, s, layer_idx, x);
  Tensor head_weights, q_index, chosen;                                          // [T, HI], [T, HI * DI], [T, top_k]
  if (selects) head_weights = linear(g, x, w.indexer.weights_proj);              // [T, HI]
  Tensor q_a = rms_norm(g, linear(g, x, w.q_a_proj), w.q_a_layernorm, s.eps());  // [T, Q]
  Tensor q = linear(g, q_a, w.q_b_proj).reshaped({n_tokens * heads, n});
  if (selects) q_index = linear(g, q_a, w.indexer.q_b_proj);
  store(g, w, s, layer_idx, to_store, caches);
  q = rotate(rms_norm(g, q, {}, s.eps()).reshaped({n_tokens, heads, n}), n, false);  // [T, H, N]
  if (selects) {
    q_index = rotate(q_index.reshaped({n_tokens, v4.index_n_heads, v4.index_head_dim}), v4.index_head_dim, false);
    chosen =
        index_rows(g, q_index, head_weights, caches.index.rows, s.step.where, static_cast<int>(ratio), v4.index_topk);
  }
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(n)));
  Tensor out = compressed_attention(g, q, caches.window, caches.compressed.rows, chosen, w.sinks, s.step.where,
                                    {scale, v4.sliding_window, ratio});      // [T, H * N]
  out = rotate(out.reshaped({n_tokens, heads, n}), n, true);                 // values lose their positions
  out = grouped_linear(g, out.reshaped({n_tokens, heads * n}), w.o_a_proj);  // [T, G * o_lora_rank]
  return linear(g, out, w.o_b_proj);                                         // [T, D]
}

/// Mixture of experts. x [T, D], token_ids [T] -> [T, D]
Tensor moe(Graph& g, const MoeWeights& w, const PassV4& s, int64_t layer_idx, const Tensor& x,
           const Tensor& token_ids) {
  const auto i = static_cast<size_t>(layer_idx);
  Tensor logits = linear(g, x, w.gate);  // [T, E]
  ExpertRoutes routes = w.tid2eid ? route_experts_by_id(g, logits, w.tid2eid, token_ids, s.config.router)
                                  : route_experts(g, logits, w.e_score_correction_bias, s.config.router);
  return moe_ffn(g, x, routes, w.experts, w.shared_experts, s.v4.swiglu_clamp[i], s.v4.shared_swiglu_clamp[i]);
}

}  // namespace

Tensor forward_v4(Graph& g, const Model& model, const Step& step) {
  const Weights& w = model.weights;
  const Config& c = model.config;
  const PassV4 s{c,
                 *c.v4,
                 w,
                 step,
                 rope_table(g, step.where.positions, w.rope_frequencies),
                 rope_table(g, step.where.positions, w.compress_rope_frequencies)};
  const std::vector<LayerCaches> caches = layer_caches(s);
  const int64_t m = s.v4.hc_mult, last = c.n_layers - 1;

  Tensor streams = embed_rows(g, w.embed_tokens, step.token_ids, static_cast<int>(m));  // [T, M * D]
  for (int64_t i = 0; i < c.n_layers; ++i) {
    const BlockWeights& block = w.layers[static_cast<size_t>(i)];
    const LayerCaches& cache = caches[static_cast<size_t>(i)];
    CollapsedStreams in = collapse_streams(g, streams, block.attn_hc, m, s.connection());
    Tensor x = rms_norm(g, in.x, block.input_layernorm, s.eps());  // [T, D]
    if (i == last && !step.output_rows) {                          // the cache alone is wanted
      store(g, block.csa, s, i, products_to_store(g, block.csa, s, i, x), cache);
      return {};
    }
    streams = expand_streams(g, streams, attention(g, block.csa, s, i, x, cache), in.mixing);  // [T, M * D]
    // After the last attention no token needs the others; a table of experts needs every row's token, though.
    const bool goes_on_alone = i == last && !block.moe.tid2eid;
    if (goes_on_alone) streams = take_rows(g, streams, step.output_rows);  // [P, M * D]
    in = collapse_streams(g, streams, block.ffn_hc, m, s.connection());
    x = rms_norm(g, in.x, block.post_attention_layernorm, s.eps());                               // [T, D]
    streams = expand_streams(g, streams, moe(g, block.moe, s, i, x, step.token_ids), in.mixing);  // [T, M * D]
    if (i == last && !goes_on_alone) streams = take_rows(g, streams, step.output_rows);           // [P, M * D]
  }
  Tensor x = collapse_streams_for_head(g, streams, w.head_hc, m, s.connection());  // [P, D]
  return linear(g, rms_norm(g, x, w.norm, s.eps()), w.lm_head);                    // [P, W]
}

}  // namespace fathom::deepseek
