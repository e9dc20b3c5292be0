// The keys of a GGUF file that a checkpoint's configuration becomes: those llama.cpp's converter writes.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "convert/hf_config.h"
#include "core/file_io.h"
#include "text/chat_templates.h"
#include "text/hf_tokenizer.h"

namespace fathom {
namespace {

/// Collects keys below "ARCHITECTURE.".
class Keys {
 public:
  explicit Keys(std::string prefix) : prefix_(std::move(prefix) + ".") {}
  void u32(const std::string& key, int64_t value) { add(key, value, GgufValueType::kU32); }
  void f32(const std::string& key, double value) { add(key, value, GgufValueType::kF32); }
  void boolean(const std::string& key, bool value) { add(key, value, GgufValueType::kBool); }
  void text(const std::string& key, std::string value) { add(key, std::move(value), GgufValueType::kString); }
  void i32s(const std::string& key, std::vector<int64_t> values) {
    keys_.push_back({prefix_ + key, std::move(values), GgufValueType::kArray, GgufValueType::kI32});
  }
  void f32s(const std::string& key, std::vector<double> values) {
    keys_.push_back({prefix_ + key, std::move(values), GgufValueType::kArray, GgufValueType::kF32});
  }
  std::vector<GgufKey> take() { return std::move(keys_); }

 private:
  void add(const std::string& key, MetadataValue value, GgufValueType type) {
    keys_.push_back({prefix_ + key, std::move(value), type});
  }

  std::string prefix_;
  std::vector<GgufKey> keys_;
};

void add_rope(const HfConfig& c, Keys& keys) {
  keys.f32("rope.freq_base", c.rope_theta);
  keys.u32("rope.dimension_count", c.generation == HfGeneration::kV1 ? c.head_dim : c.qk_rope_head_dim);
  if (!c.rope_scaling) {
    keys.text("rope.scaling.type", "none");
    return;
  }
  const HfRopeScaling& s = *c.rope_scaling;
  keys.text("rope.scaling.type", "yarn");
  keys.f32("rope.scaling.factor", s.factor);
  keys.u32("rope.scaling.original_context_length", s.original_context);
  keys.f32("rope.scaling.yarn_beta_fast", s.beta_fast);
  keys.f32("rope.scaling.yarn_beta_slow", s.beta_slow);
  if (s.mscale_all_dim) keys.f32("rope.scaling.yarn_log_multiplier", 0.1 * *s.mscale_all_dim);
}

void add_experts(const HfConfig& c, Keys& keys) {
  if (c.generation != HfGeneration::kV4) {
    keys.u32("feed_forward_length", c.intermediate_size);
    keys.u32("leading_dense_block_count", c.n_dense_layers);
  }
  keys.u32("expert_count", c.n_experts);
  keys.u32("expert_used_count", c.n_experts_used);
  keys.u32("expert_shared_count", c.n_shared_experts);
  keys.u32("expert_feed_forward_length", c.moe_intermediate_size);
  keys.f32("expert_weights_scale", c.routed_scaling_factor);
  keys.boolean("expert_weights_norm", c.norm_topk_prob);
  keys.u32("expert_gating_func", c.gating_func);
  if (c.n_group > 0) {
    keys.u32("expert_group_count", c.n_group);
    keys.u32("expert_group_used_count", c.topk_group);
  }
}

void add_latent_attention(const HfConfig& c, bool splits_kv_b, Keys& keys) {
  const int64_t qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
  keys.u32("attention.head_count_kv", splits_kv_b ? 1 : c.n_kv_heads);
  if (c.q_lora_rank > 0) keys.u32("attention.q_lora_rank", c.q_lora_rank);
  keys.u32("attention.kv_lora_rank", c.kv_lora_rank);
  keys.u32("attention.key_length", splits_kv_b ? c.kv_lora_rank + c.qk_rope_head_dim : qk);
  keys.u32("attention.value_length", splits_kv_b ? c.kv_lora_rank : c.v_head_dim);
  if (splits_kv_b) {
    keys.u32("attention.key_length_mla", qk);
    keys.u32("attention.value_length_mla", c.v_head_dim);
  }
}

void add_v4(const HfConfig& c, bool with_mtp, Keys& keys) {
  keys.u32("attention.head_count_kv", c.n_kv_heads);
  keys.u32("attention.q_lora_rank", c.q_lora_rank);
  keys.u32("attention.key_length", c.head_dim);
  keys.u32("attention.value_length", c.head_dim);
  keys.u32("embedding_length_out", c.hidden_size * c.hc_mult);
  keys.u32("attention.output_lora_rank", c.o_lora_rank);
  keys.u32("attention.output_group_count", c.o_groups);
  keys.u32("attention.sliding_window", c.sliding_window);
  keys.i32s("attention.compress_ratios", c.compress_ratios);
  keys.f32("attention.compress_rope_freq_base", c.compress_rope_theta);
  keys.u32("hyper_connection.count", c.hc_mult);
  keys.u32("hyper_connection.sinkhorn_iterations", c.hc_sinkhorn_iters);
  keys.f32("hyper_connection.epsilon", c.hc_eps);
  keys.u32("hash_layer_count", c.n_hash_layers);
  if (c.swiglu_limit > 0) {
    const std::vector<double> limits(static_cast<size_t>(c.n_layers + (with_mtp ? c.n_mtp_layers : 0)), c.swiglu_limit);
    keys.f32s("swiglu_clamp_exp", limits);
    keys.f32s("swiglu_clamp_shexp", limits);
  }
}

}  // namespace

std::vector<GgufKey> gguf_keys(const HfConfig& c, bool splits_kv_b, bool with_mtp) {
  std::vector<GgufKey> all = {{"general.architecture", c.architecture, GgufValueType::kString},
                              {"general.type", std::string("model"), GgufValueType::kString},
                              {"general.name", c.name, GgufValueType::kString}};
  Keys keys(c.architecture);
  keys.u32("block_count", c.n_layers + (with_mtp ? c.n_mtp_layers : 0));
  keys.u32("context_length", c.max_position);
  keys.u32("embedding_length", c.hidden_size);
  keys.u32("vocab_size", c.vocab_size);
  keys.u32("attention.head_count", c.n_heads);
  keys.f32("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  add_rope(c, keys);
  add_experts(c, keys);
  switch (c.generation) {
    case HfGeneration::kV1: keys.u32("attention.head_count_kv", c.n_kv_heads); break;
    case HfGeneration::kV2:
    case HfGeneration::kV3:
    case HfGeneration::kV32: add_latent_attention(c, splits_kv_b, keys); break;
    case HfGeneration::kV4: add_v4(c, with_mtp, keys); break;
  }
  if (c.index_topk > 0) {
    keys.u32("attention.indexer.head_count", c.index_n_heads);
    keys.u32("attention.indexer.key_length", c.index_head_dim);
    keys.u32("attention.indexer.top_k", c.index_topk);
  }
  if (with_mtp && c.n_mtp_layers > 0) keys.u32("nextn_predict_layers", c.n_mtp_layers);
  for (GgufKey& key : keys.take()) all.push_back(std::move(key));
  return all;
}

std::vector<GgufKey> sampling_keys(const std::string& folder) {
  const std::string text = read_whole(std::filesystem::path(folder) / "generation_config.json").value_or(std::string());
  const nlohmann::json json = nlohmann::json::parse(
      text, [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth < 32; },
      /*allow_exceptions=*/false);
  std::vector<GgufKey> keys;
  if (!json.is_object() || !json.contains("do_sample") || json["do_sample"] != true) return keys;
  const auto add = [&](const char* from, const char* to, double low, double high) {
    const auto it = json.find(from);
    if (it == json.end() || !it->is_number() || !(it->get<double>() >= low && it->get<double>() <= high)) return;
    keys.push_back({std::string("general.sampling.") + to, it->get<double>(), GgufValueType::kF32});
  };
  add("temperature", "temp", 0, 100);
  add("top_p", "top_p", 0, 1);
  return keys;
}

std::vector<GgufKey> tokenizer_keys(const std::string& folder, const HfConfig& config) {
  Metadata metadata = read_tokenizer_folder(folder, config.vocab_size);
  // Two facts that the tokenizer's files do not tell: V4's rules bear another name, and llama.cpp wants V3.2 to have a
  // BOS.
  if (config.generation == HfGeneration::kV4) metadata.set("tokenizer.ggml.pre", std::string("joyai-llm"));
  if (config.generation == HfGeneration::kV32) metadata.set("tokenizer.ggml.add_bos_token", true);
  // Their repositories have an encoder in Python instead of a template; programs that know no other would take a format
  // that the model never saw.
  if (!metadata.has("tokenizer.chat_template")) {
    const std::string text = config.generation == HfGeneration::kV4    ? chat_template_of(ChatGeneration::kV4)
                             : config.generation == HfGeneration::kV32 ? chat_template_of(ChatGeneration::kV32)
                                                                       : "";
    if (!text.empty()) metadata.set("tokenizer.chat_template", text);
  }
  std::vector<GgufKey> keys;
  for (const auto& [name, value] : metadata.all()) {
    GgufKey key{name, value, GgufValueType::kString};
    if (std::holds_alternative<int64_t>(value) || std::holds_alternative<uint64_t>(value))
      key.type = GgufValueType::kU32;
    if (std::holds_alternative<bool>(value)) key.type = GgufValueType::kBool;
    if (std::holds_alternative<std::vector<int64_t>>(value))
      key.type = GgufValueType::kArray, key.element = GgufValueType::kI32;
    if (std::holds_alternative<std::vector<std::string>>(value))
      key.type = GgufValueType::kArray, key.element = GgufValueType::kString;
    keys.push_back(std::move(key));
  }
  return keys;
}

}  // namespace fathom
