#include "engine/synthetic_v4.h"

#include "engine/synthetic_builder.h"

namespace fathom {
namespace {

// V4-Flash's config.json.
constexpr int64_t kHidden = 4096, kLayers = 43, kHeads = 64, kHeadDim = 512, kRopeDim = 64, kQueryRank = 1024,
                  kGroups = 8, kOutputRank = 1024, kExperts = 256, kUsed = 6, kExpertWidth = 2048, kVocab = 129280,
                  kHashLayers = 3, kWindow = 128, kIndexHeads = 64, kIndexDim = 128, kIndexTopK = 512, kStreams = 4,
                  kContext = 1048576;

int64_t ratio_of(int64_t layer_idx) { return layer_idx < 2 ? 0 : layer_idx % 2 == 0 ? 4 : 128; }

/// The release keeps everything but experts in 8 bits, and so do files: only experts get a smaller type. Compressors
/// and what weighs the index stay in 16.
Types types_of(const std::string& name) {
  Types types = Types::of(name);
  if (dtype_info(types.main).is_quantized) types.attention = types.head = DType::kQ8_0;
  return types;
}

DType wide(const Types& types) { return dtype_info(types.attention).is_quantized ? DType::kF16 : types.attention; }

void add_compressor(Builder& b, const std::string& prefix, const Types& types, int64_t ratio, int64_t row_dim) {
  const int64_t channels = ratio == 4 ? 2 * row_dim : row_dim;
  b.add_weight(prefix + "kv.weight", wide(types), {channels, kHidden});
  b.add_weight(prefix + "gate.weight", wide(types), {channels, kHidden});
  b.add(prefix + "ape.weight", DType::kF32, {ratio, channels});
  b.add_norm(prefix + "norm.weight", row_dim);
}

void add_block(Builder& b, const Types& types, int64_t layer_idx) {
  const std::string p = "blk." + std::to_string(layer_idx) + ".";
  const int64_t mixes = (2 + kStreams) * kStreams, ratio = ratio_of(layer_idx);
  for (const std::string& part : {p + "hc_attn_", p + "hc_ffn_"}) {
    b.add(part + "fn.weight", DType::kF32, {mixes, kStreams * kHidden});
    b.add_norm(part + "base.weight", mixes);
    b.add_norm(part + "scale.weight", 3);
  }
  b.add_norm(p + "attn_norm.weight", kHidden);
  b.add_norm(p + "ffn_norm.weight", kHidden);
  b.add_norm(p + "attn_sinks.weight", kHeads);
  b.add_weight(p + "attn_q_a.weight", types.attention, {kQueryRank, kHidden});
  b.add_norm(p + "attn_q_a_norm.weight", kQueryRank);
  b.add_weight(p + "attn_q_b.weight", types.attention, {kHeads * kHeadDim, kQueryRank});
  b.add_weight(p + "attn_kv.weight", types.attention, {kHeadDim, kHidden});
  b.add_norm(p + "attn_kv_a_norm.weight", kHeadDim);
  b.add_weight(p + "attn_output_a.weight", types.attention, {kGroups * kOutputRank, kHeads * kHeadDim / kGroups});
  b.add_weight(p + "attn_output_b.weight", types.attention, {kHidden, kGroups * kOutputRank});
  if (ratio > 0) add_compressor(b, p + "attn_compressor_", types, ratio, kHeadDim);
  if (ratio == 4) {
    b.add_weight(p + "indexer.attn_q_b.weight", types.attention, {kIndexHeads * kIndexDim, kQueryRank});
    b.add_weight(p + "indexer.proj.weight", wide(types), {kIndexHeads, kHidden});
    add_compressor(b, p + "indexer_compressor_", types, ratio, kIndexDim);
  }
  b.add(p + "ffn_gate_inp.weight", DType::kF32, {kExperts, kHidden});
  if (layer_idx < kHashLayers) {
    b.add(p + "ffn_gate_tid2eid.weight", DType::kI32, {kVocab, kUsed});
  } else {
    b.add_norm(p + "exp_probs_b.bias", kExperts);
  }
  b.add_weight(p + "ffn_gate_exps.weight", types.main, {kExperts, kExpertWidth, kHidden});
  b.add_weight(p + "ffn_up_exps.weight", types.main, {kExperts, kExpertWidth, kHidden});
  b.add_weight(p + "ffn_down_exps.weight", layer_idx % 2 == 0 ? types.down : types.main,
               {kExperts, kHidden, kExpertWidth});
  b.add_weight(p + "ffn_gate_shexp.weight", types.attention, {kExpertWidth, kHidden});
  b.add_weight(p + "ffn_up_shexp.weight", types.attention, {kExpertWidth, kHidden});
  b.add_weight(p + "ffn_down_shexp.weight", types.attention, {kHidden, kExpertWidth});
}

}  // namespace

ModelSource v4_flash_tensors(const SyntheticOptions& options) {
  const int64_t layers = options.n_layers.value_or(kLayers);
  check_layers(layers, kLayers);
  const Types types = types_of(options.type);
  ModelSource source;
  source.path = "synthetic " + options.shape + " " + options.type;
  Metadata& m = source.metadata;
  m.set("general.architecture", std::string("deepseek4"));
  m.set("general.name", source.path);
  const auto set = [&](const std::string& key, MetadataValue value) { m.set("deepseek4." + key, std::move(value)); };
  std::vector<int64_t> ratios;
  for (int64_t i = 0; i < layers; ++i) ratios.push_back(ratio_of(i));
  set("block_count", layers), set("context_length", kContext), set("embedding_length", kHidden);
  set("attention.head_count", kHeads), set("attention.key_length", kHeadDim), set("rope.dimension_count", kRopeDim);
  set("attention.q_lora_rank", kQueryRank), set("attention.output_lora_rank", kOutputRank);
  set("attention.output_group_count", kGroups), set("attention.sliding_window", kWindow);
  set("attention.compress_ratios", ratios), set("attention.indexer.head_count", kIndexHeads);
  set("attention.indexer.key_length", kIndexDim), set("attention.indexer.top_k", kIndexTopK);
  set("hyper_connection.count", kStreams), set("hash_layer_count", std::min(kHashLayers, layers));
  set("swiglu_clamp_exp", std::vector<double>(static_cast<size_t>(layers), 10.0));
  set("expert_count", kExperts), set("expert_used_count", kUsed), set("expert_shared_count", int64_t{1});
  set("expert_feed_forward_length", kExpertWidth), set("expert_weights_scale", 1.5);
  set("rope.scaling.type", std::string("yarn"));

  Builder b(source);
  b.add_weight("token_embd.weight", types.attention, {kVocab, kHidden});
  b.add_weight("output.weight", types.head, {kVocab, kHidden});
  b.add_norm("output_norm.weight", kHidden);
  b.add("output_hc_fn.weight", DType::kF32, {kStreams, kStreams * kHidden});
  b.add_norm("output_hc_base.weight", kStreams);
  b.add_norm("output_hc_scale.weight", 1);
  for (int64_t i = 0; i < layers; ++i) add_block(b, types, i);
  return source;
}

}  // namespace fathom
