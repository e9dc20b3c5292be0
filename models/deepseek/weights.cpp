#include "deepseek/weights.h"

#include <cstring>

#include "core/error.h"
#include "core/quant/dequantize.h"

namespace fathom::deepseek {
namespace {

class Binder {
 public:
  Binder(const Config& config, const std::map<std::string, Tensor>& tensors, Weights& weights)
      : c_(config), tensors_(tensors), weights_(weights) {}

  const Tensor* find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }

  /// The tensor with this shape; other shapes of equal meaning are in `also` (same bytes, viewed as `shape`).
  Tensor take(const std::string& name, const Shape& shape, const Shape& also = {}) const {
    const Tensor* t = find(name);
    if (t == nullptr)
      throw Error(ErrorCode::kModel, "tensor '" + name + "': missing; expected shape " + shape.to_string() +
                                         ", got no such tensor; " + dialect());
    if (t->shape == shape) return *t;
    if (also.rank > 0 && t->shape == also) return t->reshaped(shape);
    throw Error(ErrorCode::kModel, "tensor '" + name + "': wrong shape; expected " + shape.to_string() + ", got " +
                                       t->shape.to_string() + "; try another copy of the file");
  }

  /// The same as f32, converted where the file holds another type.
  Tensor take_f32(const std::string& name, const Shape& shape) {
    const Tensor t = take(name, shape);
    if (t.dtype == DType::kF32) return t;
    if (t.dtype != DType::kF16 && t.dtype != DType::kBF16) {
      throw Error(ErrorCode::kModel, "tensor '" + name + "': wrong type; expected f32, f16 or bf16, got " +
                                         std::string(dtype_name(t.dtype)) + "; try another copy of the file");
    }
    Tensor copy = own_f32(shape, name);
    dequantize_row(t.dtype, t.data, copy.as<float>(), shape.n_elements());
    return copy;
  }

  Tensor own_f32(const Shape& shape, const std::string& what) {
    weights_.owned.push_back(allocate_heap(static_cast<size_t>(shape.n_elements()) * sizeof(float), what));
    return Tensor(DType::kF32, shape, weights_.owned.back()->data());
  }

  BlockWeights block(int64_t layer_idx);

 private:
  std::string dialect() const {
    if (c_.attention == Attention::kMultiHead) return "the file is of architecture deepseek (multi-head attention)";
    if (find("blk.0.attn_kv_b.weight")) return "the file has the legacy attn_kv_b dialect";
    if (find("blk.0.attn_k_b.weight")) return "the file has the split attn_k_b and attn_v_b dialect";
    return "the file has neither attn_kv_b nor attn_k_b and attn_v_b";
  }

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

  GatedFfnWeights mlp(const std::string& prefix, const std::string& suffix, int64_t width) const {
    return {take(prefix + "ffn_gate" + suffix, {width, c_.hidden_size}),
            take(prefix + "ffn_up" + suffix, {width, c_.hidden_size}),
            take(prefix + "ffn_down" + suffix, {c_.hidden_size, width})};
  }

  MoeWeights moe(const std::string& prefix) {
    const int64_t e = c_.n_experts, f = c_.expert_ffn_size, d = c_.hidden_size;
    MoeWeights w;
    w.gate = take(prefix + "ffn_gate_inp.weight", {e, d});
    if (find(prefix + "exp_probs_b.bias")) w.e_score_correction_bias = take_f32(prefix + "exp_probs_b.bias", {e});
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

  const Config& c_;
  const std::map<std::string, Tensor>& tensors_;
  Weights& weights_;
};

BlockWeights Binder::block(int64_t layer_idx) {
  const std::string prefix = "blk." + std::to_string(layer_idx) + ".";
  BlockWeights w;
  w.input_layernorm = take_f32(prefix + "attn_norm.weight", {c_.hidden_size});
  if (c_.attention == Attention::kLatent) {
    w.mla = mla(prefix);
  } else {
    w.mha = mha(prefix);
  }
  w.post_attention_layernorm = take_f32(prefix + "ffn_norm.weight", {c_.hidden_size});
  if (layer_idx < c_.n_dense_layers) {
    w.mlp = mlp(prefix, ".weight", c_.dense_ffn_size);
  } else {
    w.moe = moe(prefix);
  }
  return w;
}

}  // namespace

Weights bind_weights(const Config& config, const std::map<std::string, Tensor>& tensors) {
  Weights w;
  Binder binder(config, tensors, w);
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
  const std::vector<float> frequencies = config.rope.frequencies();
  w.rope_frequencies = binder.own_f32({static_cast<int64_t>(frequencies.size())}, "rotation frequencies");
  std::memcpy(w.rope_frequencies.data, frequencies.data(), frequencies.size() * sizeof(float));
  return w;
}

}  // namespace fathom::deepseek
