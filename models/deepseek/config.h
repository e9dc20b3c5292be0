// The numbers of one DeepSeek model, read from its file: never from its name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/metadata.h"
#include "core/node.h"

namespace fathom::deepseek {

enum class Attention {
  kMultiHead,  ///< V1: a key and a value head for every query head
  kLatent,     ///< V2 and later: MLA
};

/// Rotary embedding with YaRN's blend of frequencies where the file asks for it. Source: arXiv:2309.00071.
struct RopeConfig {
  double base = 10000;
  int64_t dim = 0;       ///< R: rotated dimensions of a head
  double factor = 1;     ///< context extension; 1: none
  bool is_yarn = false;  ///< else frequencies are divided by factor throughout
  int64_t original_context = 0;
  double beta_fast = 32, beta_slow = 1;
  double log_multiplier = 0;  ///< 0.1 * mscale_all_dim: the softmax scale grows by (1 + log_multiplier * ln(factor))^2

  std::vector<float> frequencies() const;  ///< [R/2] radians per position
  double softmax_magnitude() const;        ///< that square, 1 without YaRN
};

struct Config {
  std::string architecture;  ///< "deepseek", "deepseek2" or "deepseek32"
  std::string name;          ///< general.name, may be empty
  Attention attention = Attention::kLatent;
  int64_t n_layers = 0;          ///< decoder blocks, without MTP
  int64_t n_mtp_layers = 0;      ///< blocks after them that predict further tokens
  int64_t n_dense_layers = 0;    ///< the first blocks, with one feed-forward network
  int64_t hidden_size = 0;       ///< D
  int64_t n_heads = 0;           ///< H
  int64_t q_lora_rank = 0;       ///< Q, 0: queries are not compressed
  int64_t kv_lora_rank = 0;      ///< C (latent attention only)
  int64_t qk_nope_head_dim = 0;  ///< N
  int64_t v_head_dim = 0;        ///< V
  int64_t index_n_heads = 0;     ///< HI, of V3.2's indexer
  int64_t index_head_dim = 0;    ///< DI
  int64_t index_topk = 0;        ///< rows that a token attends to at most; 0: no indexer, all of them
  int64_t dense_ffn_size = 0;    ///< of the dense blocks
  int64_t n_experts = 0;         ///< E
  int64_t n_shared_experts = 0;
  int64_t expert_ffn_size = 0;  ///< F
  RouterParams router;
  RopeConfig rope;
  double rms_eps = 1e-6;
  int64_t context_length = 0;  ///< positions the model was made for

  int64_t qk_rope_head_dim() const { return rope.dim; }                ///< R
  int64_t qk_head_dim() const { return qk_nope_head_dim + rope.dim; }  ///< N + R
  float softmax_scale() const;
  bool has_indexer() const { return index_topk > 0; }
  /// Elements a token leaves in the cache: in each layer, and behind them for the indexer of each layer.
  std::vector<int64_t> cache_row_elements() const;
};

/// True if this family computes files of that general.architecture.
bool is_supported(const std::string& architecture);

/// Fills what older converters left out by the rules beside each key. `has_mtp_tensors`, `has_router_bias`: whether the
/// file holds blk.{last}.nextn.eh_proj.weight and any exp_probs_b.bias. Throws Error{kModel} naming key, expected and
/// found value.
Config read_config(const Metadata& metadata, bool has_mtp_tensors, bool has_router_bias);

}  // namespace fathom::deepseek
