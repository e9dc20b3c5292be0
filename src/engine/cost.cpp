#include "engine/cost.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

double bytes_of(const Tensor& t) { return static_cast<double>(t.size_bytes()); }
double elements_of(const Tensor& t) { return static_cast<double>(t.shape.n_elements()); }

/// V4's cache and attention: a window, compressed rows, and the index of those that are chosen. Means over the step's
/// tokens, half of whose own rows come before each.
void add_compressed_attention(const deepseek::Config& c, const CacheLayout& layout, double sequences,
                              double tokens_each, double depth, StepCost& cost) {
  const deepseek::V4Config& v4 = *c.v4;
  const double n = static_cast<double>(v4.head_dim), seen = depth + (tokens_each + 1) / 2, all = depth + tokens_each;
  const auto bytes = [&](int64_t elements) { return static_cast<double>(row_bytes(layout.dtype, elements)); };
  const auto window = static_cast<double>(v4.sliding_window);
  for (int64_t i = 0; i < c.n_layers; ++i) {
    const auto ratio = static_cast<double>(v4.compress_ratios[static_cast<size_t>(i)]);
    double rows = std::min(window, seen);
    cost.cache_bytes += sequences * bytes(v4.head_dim) * std::min(window + tokens_each - 1, all);
    if (ratio > 0) {
      double compressed = seen / ratio, read = all / ratio;
      if (v4.has_index(i)) {
        const auto most = static_cast<double>(v4.index_topk), width = static_cast<double>(v4.index_head_dim);
        cost.cache_bytes += sequences * bytes(v4.index_head_dim) * read;
        cost.attention_ops += sequences * tokens_each * compressed * 2 * width * static_cast<double>(v4.index_n_heads);
        compressed = std::min(compressed, most);
        read = std::min(read, most * tokens_each);
      }
      rows += compressed;
      cost.cache_bytes += sequences * bytes(v4.head_dim) * read;
    }
    cost.attention_ops += sequences * tokens_each * rows * 4 * n * static_cast<double>(c.n_heads);
  }
}

}  // namespace

StepCost step_cost(const deepseek::Model& model, const CacheLayout& layout, int64_t n_sequences, int64_t tokens_each,
                   int64_t depth) {
  const deepseek::Config& c = model.config;
  const double tokens = static_cast<double>(n_sequences * tokens_each), outputs = static_cast<double>(n_sequences);
  // With an indexer a token beyond its top k reads that many rows, after the keys of all of them.
  const int64_t last = depth + tokens_each;
  const bool selects = c.has_indexer() && last > c.index_topk;
  StepCost cost;
  auto used = [&](const Tensor& t, double n_tokens, double share = 1.0) {
    cost.weight_bytes += bytes_of(t) * share;
    cost.model_bytes += bytes_of(t);
    cost.matmul_ops += 2 * elements_of(t) * n_tokens;
  };
  // Of E experts, n tokens with K each touch E * (1 - (1 - K/E)^n) if routing is uniform.
  const double k_of_e = c.n_experts > 0 ? static_cast<double>(c.router.n_used) / static_cast<double>(c.n_experts) : 0;
  for (size_t i = 0; i < model.weights.layers.size(); ++i) {
    const deepseek::BlockWeights& w = model.weights.layers[i];
    for (const Tensor& t :
         {w.mla.q_proj, w.mla.q_a_proj, w.mla.q_b_proj, w.mla.kv_a_proj, w.mla.kv_b.kv_b, w.mla.kv_b.k_b,
          w.mla.kv_b.v_b, w.mla.o_proj, w.mha.q_proj, w.mha.k_proj, w.mha.v_proj, w.mha.o_proj})
      used(t, tokens);
    used(w.mla.indexer.wk, tokens);
    for (const Tensor& t : {w.mla.indexer.wq_b, w.mla.indexer.weights_proj})
      used(t, selects ? tokens : 0, selects ? 1 : 0);
    const double ffn_tokens =
        i + 1 == model.weights.layers.size() ? outputs : tokens;  // the last layer's network runs for outputs only
    for (const Tensor& t : {w.mlp.gate, w.mlp.up, w.mlp.down, w.moe.gate, w.moe.shared_experts.gate,
                            w.moe.shared_experts.up, w.moe.shared_experts.down})
      used(t, ffn_tokens);
    for (const Tensor& t : {w.moe.experts.gate, w.moe.experts.up, w.moe.experts.down}) {
      if (t) used(t, ffn_tokens * k_of_e, 1 - std::pow(1 - k_of_e, ffn_tokens));
    }
    const deepseek::CompressedAttentionWeights& csa = w.csa;
    for (const Tensor& t : {csa.q_a_proj, csa.q_b_proj, csa.kv_proj, csa.o_a_proj, csa.o_b_proj, csa.compressor.kv_proj,
                            csa.compressor.gate_proj, csa.indexer.q_b_proj, csa.indexer.weights_proj,
                            csa.indexer.compressor.kv_proj, csa.indexer.compressor.gate_proj, w.attn_hc.fn})
      used(t, tokens);
    used(w.ffn_hc.fn, ffn_tokens);
    if (c.attention == deepseek::Attention::kCompressed) continue;
    const int64_t rows = selects ? std::min(last, c.index_topk * tokens_each) : last;
    cost.cache_bytes +=
        static_cast<double>(layout.row_bytes(static_cast<int>(i))) * static_cast<double>(n_sequences * rows);
    if (selects) {
      cost.cache_bytes += static_cast<double>(layout.row_bytes(static_cast<int>(i + model.weights.layers.size()))) *
                          static_cast<double>(n_sequences * last);
    }
  }
  used(model.weights.head_hc.fn, outputs);
  used(model.weights.lm_head, outputs);
  cost.weight_bytes += bytes_of(model.weights.embed_tokens) / elements_of(model.weights.embed_tokens) *
                       static_cast<double>(c.hidden_size) * tokens;
  cost.model_bytes += bytes_of(model.weights.embed_tokens);

  // Pairs of query and key: each of the new tokens sees the depth and the new ones up to itself.
  const auto pairs_of = [&](int64_t first, int64_t n) {
    return outputs * (static_cast<double>(n * first) + static_cast<double>(n * (n + 1)) / 2);
  };
  const double heads = static_cast<double>(c.n_heads), layers = static_cast<double>(c.n_layers);
  if (c.attention == deepseek::Attention::kCompressed) {
    add_compressed_attention(c, layout, outputs, static_cast<double>(tokens_each), static_cast<double>(depth), cost);
    return cost;
  }
  if (c.attention == deepseek::Attention::kMultiHead) {
    cost.attention_ops = layers * heads * pairs_of(depth, tokens_each) * 4 * static_cast<double>(c.qk_head_dim());
  } else {
    // models: arXiv:2405.04434; the projections by W_UK and W_UV of the new tokens are counted as matmul above.
    // Tokens that choose: all that see more rows than they may have.
    const int64_t n_choosing = selects ? std::min(tokens_each, last - c.index_topk) : 0,
                  n_dense = tokens_each - n_choosing;
    const double pairs = pairs_of(depth, n_dense) + outputs * static_cast<double>(n_choosing * c.index_topk);
    const double absorbed = pairs * 2 * static_cast<double>(2 * c.kv_lora_rank + c.qk_rope_head_dim());
    const double expanded = pairs * 2 * static_cast<double>(c.qk_head_dim() + c.v_head_dim) +
                            outputs * static_cast<double>(depth) * 2 *
                                static_cast<double>(c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim));
    cost.attention_ops =
        layers * (heads * (c.has_indexer() ? absorbed : std::min(absorbed, expanded)) +
                  pairs_of(depth + n_dense, n_choosing) * 2 * static_cast<double>(c.index_n_heads * c.index_head_dim));
  }
  return cost;
}

}  // namespace fathom
