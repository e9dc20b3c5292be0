// What config.json of a DeepSeek checkpoint says, checked, and the GGUF keys that say the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/metadata.h"
#include "io/gguf_types.h"

namespace fathom {

enum class HfGeneration { kV1, kV2, kV3, kV32, kV4 };

/// Whether MTP layers become blocks with nextn tensors, where the checkpoint has them. llama.cpp reads such files of V3
/// and V3.2 and refuses those of V4, so kAuto keeps the former and leaves out the latter.
enum class MtpChoice { kAuto, kKeep, kLeaveOut };

/// Rows and columns that share one scale of an FP8 weight.
struct ScaleBlock {
  int64_t rows, cols;
};

struct HfRopeScaling {
  double factor = 1;
  int64_t original_context = 0;
  double beta_fast = 32, beta_slow = 1;
  std::optional<double> mscale_all_dim;
};

/// Names are config.json's; the legend of shapes is models/README.md's. Fields of other generations are 0.
struct HfConfig {
  HfGeneration generation = HfGeneration::kV3;
  std::string path;          ///< of config.json, for messages
  std::string architecture;  ///< general.architecture
  std::string name;          ///< of the model's folder
  int64_t vocab_size = 0, hidden_size = 0, n_layers = 0, n_mtp_layers = 0, max_position = 0;
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  double rms_norm_eps = 0, rope_theta = 0;
  std::optional<HfRopeScaling> rope_scaling;
  int64_t intermediate_size = 0, n_dense_layers = 0;
  int64_t n_experts = 0, n_experts_used = 0, n_shared_experts = 0, moe_intermediate_size = 0;
  int64_t n_group = 0, topk_group = 0;
  double routed_scaling_factor = 1;
  bool norm_topk_prob = false;
  int gating_func = 1;  ///< 1 softmax, 2 sigmoid, 4 sqrt-softplus
  bool has_router_bias = false;
  bool is_tied = false;  ///< the head is the embedding
  int64_t q_lora_rank = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  int64_t index_n_heads = 0, index_head_dim = 0, index_topk = 0;
  // V4
  int64_t o_groups = 0, o_lora_rank = 0, n_hash_layers = 0, sliding_window = 0, hc_mult = 0, hc_sinkhorn_iters = 0;
  double compress_rope_theta = 0, hc_eps = 0, swiglu_limit = 0;
  std::vector<int64_t> compress_ratios;
  // Weights
  std::optional<ScaleBlock> fp8_block;  ///< quantization_config.weight_block_size

  bool is_mla() const {
    return generation == HfGeneration::kV2 || generation == HfGeneration::kV3 || generation == HfGeneration::kV32;
  }
  bool is_moe_layer(int64_t layer) const { return n_experts > 0 && layer >= n_dense_layers; }
};

/// Reads FOLDER/config.json. Throws Error{kModel} naming the file and the field for anything that is missing, of
/// another kind, out of range, or of another architecture.
HfConfig read_hf_config(const std::string& folder);

/// A key of the file to be written.
struct GgufKey {
  std::string name;
  MetadataValue value;
  GgufValueType type;
  GgufValueType element = GgufValueType::kU8;  ///< of arrays
};

/// general.* and architecture keys. `splits_kv_b`: the file has attn_k_b and attn_v_b instead of attn_kv_b. `with_mtp`:
/// the MTP layers are among its blocks.
std::vector<GgufKey> gguf_keys(const HfConfig& config, bool splits_kv_b, bool with_mtp);

/// general.sampling.* from FOLDER/generation_config.json; nothing where it is absent, unusable or greedy.
std::vector<GgufKey> sampling_keys(const std::string& folder);

/// tokenizer.* from the folder's tokenizer files. Throws as read_tokenizer_folder.
std::vector<GgufKey> tokenizer_keys(const std::string& folder, const HfConfig& config);

}  // namespace fathom
