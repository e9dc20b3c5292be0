#include "deepseek/weights_v4.h"

namespace fathom::deepseek {
namespace {

/// `stems`: what the names of the compressor's tensors begin with, by dialect.
CompressorWeights bind_compressor(Binder& b, std::initializer_list<const char*> stems, const std::string& prefix,
                                  int64_t ratio, int64_t row_dim) {
  const auto name = [&](const char* part) {
    for (const char* stem : stems) {
      if (b.find(prefix + stem + part)) return prefix + stem + part;
    }
    return prefix + *stems.begin() + part;
  };
  const int64_t channels = V4Config::channel_sets(ratio) * row_dim, hidden = b.config().hidden_size;
  CompressorWeights w;
  w.kv_proj = b.take(name("kv.weight"), {channels, hidden});
  w.gate_proj = b.take(name("gate.weight"), {channels, hidden});
  w.positional = b.take_f32(name("ape.weight"), {ratio, channels});
  w.norm = b.take_f32(name("norm.weight"), {row_dim});
  return w;
}

HyperConnectionWeights bind_connection(Binder& b, const std::string& prefix, int64_t rows, int64_t scales) {
  HyperConnectionWeights w;
  w.fn = b.take(prefix + "fn.weight", {rows, b.config().v4->hc_mult * b.config().hidden_size});
  w.base = b.take_f32(prefix + "base.weight", {rows});
  w.scale = b.take_f32(prefix + "scale.weight", {scales});
  return w;
}

}  // namespace

CompressedAttentionWeights bind_compressed_attention(Binder& b, const std::string& prefix, int64_t layer_idx) {
  const Config& c = b.config();
  const V4Config& v4 = *c.v4;
  const int64_t d = c.hidden_size, n = v4.head_dim, heads = c.n_heads, groups = v4.o_groups, rank = v4.o_lora_rank;
  const int64_t ratio = v4.compress_ratios[static_cast<size_t>(layer_idx)];
  CompressedAttentionWeights w;
  w.q_a_proj = b.take(prefix + "attn_q_a.weight", {c.q_lora_rank, d});
  w.q_a_layernorm = b.take_f32(prefix + "attn_q_a_norm.weight", {c.q_lora_rank});
  w.q_b_proj = b.take(prefix + "attn_q_b.weight", {heads * n, c.q_lora_rank});
  w.kv_proj = b.take(b.either({"attn_kv.weight", "attn_kv_latent.weight"}, prefix), {n, d});
  w.kv_layernorm = b.take_f32(b.either({"attn_kv_a_norm.weight", "attn_kv_norm.weight"}, prefix), {n});
  w.sinks = b.take_f32(b.either({"attn_sinks.weight", "attn_sinks"}, prefix), {heads});
  w.o_a_proj = b.take(prefix + "attn_output_a.weight", {groups * rank, heads * n / groups});
  w.o_b_proj = b.take(prefix + "attn_output_b.weight", {d, groups * rank});
  if (ratio > 0) w.compressor = bind_compressor(b, {"attn_compressor_", "attn_compress_"}, prefix, ratio, n);
  if (v4.has_index(layer_idx)) {
    w.indexer.q_b_proj =
        b.take(prefix + "indexer.attn_q_b.weight", {v4.index_n_heads * v4.index_head_dim, c.q_lora_rank});
    w.indexer.weights_proj = b.take(prefix + "indexer.proj.weight", {v4.index_n_heads, d});
    w.indexer.compressor = bind_compressor(b, {"indexer_compressor_", "indexer.compressor_", "indexer.compress_"},
                                           prefix, ratio, v4.index_head_dim);
  }
  return w;
}

HyperConnectionWeights bind_hyper_connection(Binder& b, const std::string& prefix) {
  const int64_t m = b.config().v4->hc_mult;
  return bind_connection(b, prefix, (2 + m) * m, 3);
}

HyperConnectionWeights bind_head_connection(Binder& b) {
  return bind_connection(b, b.find("hc_head_fn.weight") ? "hc_head_" : "output_hc_", b.config().v4->hc_mult, 1);
}

Tensor bind_expert_table(const Binder& b, const std::string& prefix) {
  const Config& c = b.config();
  const std::string name = prefix + "ffn_gate_tid2eid.weight";
  const Tensor* embedding = b.find("token_embd.weight");
  const Tensor table = b.take(name, {embedding->dim(0), c.router.n_used});
  if (table.dtype != DType::kI32) {
    throw Error(ErrorCode::kModel, "tensor '" + name + "': wrong type; expected i32, got " +
                                       std::string(dtype_name(table.dtype)) + "; try another copy of the file");
  }
  // Without data only shapes are asked for.
  for (int64_t i = 0; table.data != nullptr && i < table.shape.n_elements(); ++i) {
    const int32_t id = table.as<int32_t>()[i];
    if (id >= 0 && id < c.n_experts) continue;
    throw Error(ErrorCode::kModel, "tensor '" + name + "': an expert that does not exist; expected 0 to " +
                                       std::to_string(c.n_experts - 1) + ", got " + std::to_string(id) +
                                       "; try another copy of the file");
  }
  return table;
}

}  // namespace fathom::deepseek
