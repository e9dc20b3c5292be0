#include "deepseek/weights.h"

#include <cstring>

#include "deepseek/binder.h"
#include "deepseek/weights_v4.h"

namespace fathom::deepseek {
namespace {

class BlockBinder : public Binder {
 public:
  using Binder::Binder;
  BlockWeights block(int64_t layer_idx);
  MtpWeights mtp(int64_t layer_idx);

 private:
  MlaWeights mla(const std::string& prefix) {
    const int64_t q_rows = c_.n_heads * c_.qk_head_dim();
    MlaWeights w;
    if (c_.q_lora_rank == 0) {
      w.q_proj = take(prefix + "attn_q.weight", {q_rows, c_.hidden_size});
    } else {
      w.q_a_proj = take(prefix + "attn_q_a.weight", {c_.q_lora_rank, c_.hidden_size});
      w.q_a_layernorm = take_f32(prefix + "attn_q_a_norm.weight", {c_.q_lora_rank});
      w.q_b_proj = take(prefix + "attn_q_b.weight", {q_rows, c_.q_lora_rank});
    }
    w.kv_a_proj = take(prefix + "attn_kv_a_mqa.weight", {c_.kv_lora_rank + c_.qk_rope_head_dim(), c_.hidden_size});
    w.kv_a_layernorm = take_f32(prefix + "attn_kv_a_norm.weight", {c_.kv_lora_rank});
    const int64_t h = c_.n_heads, nope = c_.qk_nope_head_dim, v = c_.v_head_dim, latent = c_.kv_lora_rank;
    if (find(prefix + "attn_kv_b.weight") || !find(prefix + "attn_k_b.weight")) {
      w.kv_b.kv_b = take(prefix + "attn_kv_b.weight", {h * (nope + v), latent});
    } else {
      w.kv_b.k_b = take(prefix + "attn_k_b.weight", {h, latent, nope}, {h * latent, nope});
      w.kv_b.v_b = take(prefix + "attn_v_b.weight", {h, v, latent}, {h * v, latent});
    }
    w.o_proj = take(prefix + "attn_output.weight", {c_.hidden_size, h * v});
    if (c_.has_indexer()) w.indexer = indexer(prefix + "indexer.");
    return w;
  }

  IndexerWeights indexer(const std::string& prefix) {
    const int64_t dim = c_.index_head_dim;
    return {take(prefix + "attn_q_b.weight", {c_.index_n_heads * dim, c_.q_lora_rank}),
            take(prefix + "attn_k.weight", {dim, c_.hidden_size}), take_f32(prefix + "k_norm.weight", {dim}),
            take_f32(prefix + "k_norm.bias", {dim}), take(prefix + "proj.weight", {c_.index_n_heads, c_.hidden_size})};
  }

  MhaWeights mha(const std::string& prefix) const {
    const Shape shape{c_.n_heads * c_.qk_head_dim(), c_.hidden_size};
    return {take(prefix + "attn_q.weight", shape), take(prefix + "attn_k.weight", shape),
            take(prefix + "attn_v.weight", shape),
            take(prefix + "attn_output.weight", {c_.hidden_size, c_.n_heads * c_.v_head_dim})};
  }

  MoeWeights moe(const std::string& prefix, int64_t layer_idx) {
    const int64_t e = c_.n_experts, f = c_.expert_ffn_size, d = c_.hidden_size;
    MoeWeights w;
    w.gate = take(prefix + "ffn_gate_inp.weight", {e, d});
    if (find(prefix + "exp_probs_b.bias")) w.e_score_correction_bias = take_f32(prefix + "exp_probs_b.bias", {e});
    if (c_.v4 && layer_idx < c_.v4->n_hash_layers) w.tid2eid = bind_expert_table(*this, prefix);
    if (find(prefix + "ffn_gate_up_exps.weight")) {  // per expert: the gate's rows, then up's
      const Tensor both = take(prefix + "ffn_gate_up_exps.weight", {e, 2 * f, d});
      w.experts.gate = w.experts.up = both;
      w.experts.gate.shape = w.experts.up.shape = Shape{e, f, d};
      w.experts.up.data = both.data + f * both.strides_bytes[1];
    } else {
      w.experts.gate = take(prefix + "ffn_gate_exps.weight", {e, f, d});
      w.experts.up = take(prefix + "ffn_up_exps.weight", {e, f, d});
    }
    w.experts.down = take(prefix + "ffn_down_exps.weight", {e, d, f});
    if (c_.n_shared_experts > 0) w.shared_experts = mlp(prefix, "_shexp.weight", c_.n_shared_experts * f);
    return w;
  }
};

BlockWeights BlockBinder::block(int64_t layer_idx) {
  const std::string prefix = "blk." + std::to_string(layer_idx) + ".";
  BlockWeights w;
  w.input_layernorm = take_f32(prefix + "attn_norm.weight", {c_.hidden_size});
  switch (c_.attention) {
    case Attention::kMultiHead: w.mha = mha(prefix); break;
    case Attention::kLatent: w.mla = mla(prefix); break;
    case Attention::kCompressed:
      w.csa = bind_compressed_attention(*this, prefix, layer_idx);
      w.attn_hc = bind_hyper_connection(*this, prefix + "hc_attn_");
      w.ffn_hc = bind_hyper_connection(*this, prefix + "hc_ffn_");
      break;
  }
  w.post_attention_layernorm = take_f32(prefix + "ffn_norm.weight", {c_.hidden_size});
  if (layer_idx < c_.n_dense_layers) {
    w.mlp = mlp(prefix, ".weight", c_.dense_ffn_size);
  } else {
    w.moe = moe(prefix, layer_idx);
  }
  return w;
}

}  // namespace

Weights bind_weights(const Config& config, const std::map<std::string, Tensor>& tensors) {
  Weights w;
  BlockBinder binder(config, tensors, w);
  const Tensor* embedding = binder.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.rank != 2 || embedding->dim(0) < 1) {
    throw Error(ErrorCode::kModel, "tensor 'token_embd.weight': missing or without rows; expected [vocabulary, " +
                                       std::to_string(config.hidden_size) + "], got " +
                                       (embedding ? embedding->shape.to_string() : std::string("no such tensor")) +
                                       "; try another copy of the file");
  }
  w.embed_tokens = binder.take("token_embd.weight", {embedding->dim(0), config.hidden_size});
  for (int64_t i = 0; i < config.n_layers; ++i) w.layers.push_back(binder.block(i));
  w.norm = binder.take_f32("output_norm.weight", {config.hidden_size});
  // DeepSeek never ties embedding and head; small models of other makers that use the architecture do.
  w.lm_head = binder.find("output.weight") ? binder.take("output.weight", w.embed_tokens.shape) : w.embed_tokens;
  const auto own_frequencies = [&](const RopeConfig& rope) {
    const std::vector<float> frequencies = rope.frequencies();
    const Tensor t = binder.own_f32({static_cast<int64_t>(frequencies.size())}, "rotation frequencies");
    std::memcpy(t.data, frequencies.data(), frequencies.size() * sizeof(float));
    return t;
  };
  w.rope_frequencies = own_frequencies(config.rope);
  if (config.v4) {
    w.compress_rope_frequencies = own_frequencies(config.v4->compress_rope);
    w.head_hc = bind_head_connection(binder);
  }
  return w;
}

namespace {

std::string mtp_prefix(const Config& config) { return "blk." + std::to_string(config.n_layers) + "."; }

}  // namespace

bool has_mtp_block(const Config& config, const std::map<std::string, Tensor>& tensors) {
  return config.n_mtp_layers > 0 && config.attention == Attention::kLatent &&
         tensors.contains(mtp_prefix(config) + "nextn.eh_proj.weight") &&
         tensors.contains(mtp_prefix(config) + "attn_norm.weight");
}

void bind_mtp(const Config& config, const std::map<std::string, Tensor>& tensors, Weights& weights) {
  BlockBinder binder(config, tensors, weights);
  const std::string prefix = mtp_prefix(config) + "nextn.";
  auto own_or = [&](const char* name, const Tensor& models) {
    return binder.find(prefix + name) ? binder.take(prefix + name, models.shape) : models;
  };
  MtpWeights w;
  w.enorm = binder.take_f32(prefix + "enorm.weight", {config.hidden_size});
  w.hnorm = binder.take_f32(prefix + "hnorm.weight", {config.hidden_size});
  w.eh_proj = binder.take(prefix + "eh_proj.weight", {config.hidden_size, 2 * config.hidden_size});
  w.block = binder.block(config.n_layers);
  w.norm = binder.take_f32(prefix + "shared_head_norm.weight", {config.hidden_size});
  w.embed_tokens = own_or("embed_tokens.weight", weights.embed_tokens);
  w.lm_head = own_or("shared_head_head.weight", weights.lm_head);
  weights.mtp = std::move(w);
}

}  // namespace fathom::deepseek
