// The numbers of one DeepSeek model, read from its file: never from its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/metadata.h"
#include "core/node.h"

namespace fathom::deepseek {

enum class Attention {
  kMultiHead,   ///< V1: a key and a value head for every query head
  kLatent,      ///< V2 and later: MLA
  kCompressed,  ///< V4: one row a token for all heads, a window of them and rows that stand for several tokens
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

/// Tokens of a compressed row of a layer that keeps the model's index; rows of other layers are all seen.
constexpr int64_t kIndexedRatio = 4;

/// What V4 has beyond its predecessors. Source: the released config.json, spelled as its keys.
struct V4Config {
  int64_t head_dim = 0;  ///< N + R: of queries and of the row that is key and value
  int64_t o_groups = 0, o_lora_rank = 0;
  int64_t sliding_window = 0;
  std::vector<int64_t> compress_ratios;  ///< [n_layers] tokens of a compressed row; 0: the window alone
  RopeConfig compress_rope;              ///< of layers with compressed rows; Config::rope is of the others
  int64_t index_n_heads = 0, index_head_dim = 0, index_topk = 0;
  int64_t hc_mult = 0;  ///< residual streams
  int64_t hc_sinkhorn_iters = 0;
  double hc_eps = 0;
  int64_t n_hash_layers = 0;                             ///< the first layers, whose experts the token's id chooses
  std::vector<float> swiglu_clamp, shared_swiglu_clamp;  ///< [n_layers]

  bool has_index(int64_t layer_idx) const { return compress_ratios[static_cast<size_t>(layer_idx)] == kIndexedRatio; }
  /// Sets of channels of a compressor: windows of kIndexedRatio overlap.
  static int64_t channel_sets(int64_t ratio) { return ratio == kIndexedRatio ? 2 : 1; }
};

/// One kind of rows that a layer keeps, in a paged array of its own.
struct CacheRows {
  int64_t elements = 0;
  int64_t tokens_per_row = 1;  ///< a page of tokens has max(1, page / tokens_per_row) rows
  bool is_recent = false;      ///< only the last Config::recent_tokens() tokens' are ever read
  bool is_exact = false;       ///< f32, whatever the cache's type
};

struct Config {
  std::string architecture;  ///< "deepseek", "deepseek2", "deepseek32" or "deepseek4"
  std::string name;          ///< general.name, may be empty
  Attention attention = Attention::kLatent;
  int64_t n_layers = 0;          ///< decoder blocks, without MTP
  int64_t n_mtp_layers = 0;      ///< blocks after them that predict further tokens
  bool caches_mtp = false;       ///< the first of them is used, and keeps rows in the cache
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
  std::optional<V4Config> v4;  ///< with Attention::kCompressed

  int64_t qk_rope_head_dim() const { return rope.dim; }                ///< R
  int64_t qk_head_dim() const { return qk_nope_head_dim + rope.dim; }  ///< N + R
  float softmax_scale() const;
  bool has_indexer() const { return index_topk > 0; }  ///< V3.2's
  /// Whether a token at this position sees more rows in some layer than attention may have.
  bool chooses_at(int64_t position) const;
  bool has_choice() const { return chooses_at(context_length); }
  /// All that forward() reads and writes, in the order of Step::caches: layer after layer
  /// (behind them the index keys of each layer, where it has an indexer), in V4 the window's rows,
  /// then of the layer's compressor and its index's the pending inputs and the rows.
  /// With caches_mtp the MTP block's come last, as a layer's.
  std::vector<CacheRows> cache_rows() const;
  size_t n_mtp_cache_rows() const { return has_indexer() ? 2 : 1; }
  /// Tokens before a position whose recent rows it takes to go on from there; 0: there are no recent rows.
  int64_t recent_tokens() const;
};

/// True if this family computes files of that general.architecture.
bool is_supported(const std::string& architecture);

/// Fills what older converters left out by the rules beside each key. `has_mtp_tensors`, `has_router_bias`: whether the
/// file holds blk.{last}.nextn.* and any exp_probs_b.bias. Throws Error{kModel} naming key, expected and
/// found value.
Config read_config(const Metadata& metadata, bool has_mtp_tensors, bool has_router_bias);

}  // namespace fathom::deepseek
