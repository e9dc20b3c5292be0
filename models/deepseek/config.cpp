#include "deepseek/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "deepseek/config_reader.h"
#include "deepseek/config_v4.h"

namespace fathom::deepseek {
namespace {

RopeConfig read_rope(const Reader& r, const Config& c) {
  RopeConfig rope;
  rope.base = r.number_or("rope.freq_base", 1.0, 1e12, 10000.0);
  rope.dim =
      r.int_or("rope.dimension_count", 2, 65536, c.attention == Attention::kMultiHead ? c.hidden_size / c.n_heads : 64);
  if (rope.dim % 2 != 0) r.refuse("rope.dimension_count", "expected an even number, got " + std::to_string(rope.dim));
  const std::string* type = r.text("rope.scaling.type");
  if (type == nullptr || *type == "none" || type->empty()) return rope;
  if (*type != "yarn" && *type != "linear")
    r.refuse("rope.scaling.type", "expected yarn, linear or none, got '" + *type + "'");
  rope.is_yarn = *type == "yarn";
  rope.factor = r.number_or("rope.scaling.factor", 1e-3, 1e6, 1.0);
  if (!rope.is_yarn) return rope;
  rope.original_context = r.int_or("rope.scaling.original_context_length", 1, kMaxContext, 4096);
  rope.beta_fast = r.number_or("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0);
  rope.beta_slow = r.number_or("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0);
  // Very old files lack the key; a plain scale would degrade them. V2 trained with 0.707, V3 (sigmoid, 256 experts)
  // with 1.
  const double inferred = c.router.score == RouterScore::kSigmoid && c.n_experts == 256 ? 0.1 : 0.0707;
  rope.log_multiplier = r.number_or("rope.scaling.yarn_log_multiplier", 0.0, 100.0, inferred);
  return rope;
}

RouterParams read_router(const Reader& r, const Config& c, bool has_router_bias) {
  RouterParams p;
  p.n_used = static_cast<int>(r.required_int("expert_used_count", 1, kMaxExperts));
  if (p.n_used > c.n_experts) {
    r.refuse("expert_used_count",
             "expected at most expert_count = " + std::to_string(c.n_experts) + ", got " + std::to_string(p.n_used));
  }
  switch (r.int_or("expert_gating_func", 0, 1000, 0)) {
    case 0:  // files made before 2025, and V4's, which has one kind
      p.score = c.attention == Attention::kCompressed ? RouterScore::kSqrtSoftplus
                : has_router_bias                     ? RouterScore::kSigmoid
                                                      : RouterScore::kSoftmax;
      break;
    case 1: p.score = RouterScore::kSoftmax; break;
    case 2: p.score = RouterScore::kSigmoid; break;
    case 4: p.score = RouterScore::kSqrtSoftplus; break;
    default:
      r.refuse("expert_gating_func", "expected 1 softmax, 2 sigmoid or 4 sqrt-softplus, got " +
                                         std::to_string(*r.optional_int("expert_gating_func", 0, 1000)));
  }
  p.scale = static_cast<float>(r.number_or("expert_weights_scale", 0.0, 1e6, 1.0));
  p.normalize = r.boolean("expert_weights_norm").value_or(c.attention == Attention::kCompressed);
  // V2 ranks groups by their best expert, V3 by the two best of the biased scores.
  p.group_rank = p.score == RouterScore::kSoftmax ? GroupRank::kBest : GroupRank::kSumOfTwoBest;
  // Converters write the groups only since late 2025; the released models without them are known by their other
  // numbers.
  int64_t groups = 1, used = 1;
  if (c.n_experts == 256 && p.score == RouterScore::kSigmoid && c.hidden_size == 7168 && p.n_used == 8) {
    groups = 8;
    used = 4;
  } else if (c.n_experts == 160 && p.score == RouterScore::kSoftmax && p.scale == 16.0F) {
    groups = 8;
    used = 3;
  }
  p.n_groups = static_cast<int>(std::max<int64_t>(1, r.int_or("expert_group_count", 0, kMaxExperts, groups)));
  p.n_groups_used = static_cast<int>(r.int_or("expert_group_used_count", 0, kMaxExperts, p.n_groups == 1 ? 1 : used));
  if (p.n_groups_used == 0) p.n_groups_used = p.n_groups;
  if (c.n_experts % p.n_groups != 0 || p.n_groups_used > p.n_groups) {
    r.refuse("expert_group_count", "expected groups that divide " + std::to_string(c.n_experts) +
                                       " experts, of which some are used, got " + std::to_string(p.n_groups) + " and " +
                                       std::to_string(p.n_groups_used));
  }
  if (p.n_used > c.n_experts / p.n_groups * p.n_groups_used) {
    r.refuse("expert_used_count", "expected at most the experts of the groups used, got " + std::to_string(p.n_used));
  }
  return p;
}

void read_indexer(const Reader& r, Config& c) {
  c.index_n_heads = r.required_int("attention.indexer.head_count", 1, kMaxHeads);
  c.index_head_dim = r.required_int("attention.indexer.key_length", 1, kMaxWidth);
  c.index_topk = r.required_int("attention.indexer.top_k", 1, kMaxContext);
  if (c.index_head_dim < c.rope.dim) {
    r.refuse("attention.indexer.key_length", "expected at least the " + std::to_string(c.rope.dim) +
                                                 " rotated dimensions, got " + std::to_string(c.index_head_dim));
  }
  if (c.q_lora_rank == 0) r.refuse("attention.q_lora_rank", "expected the rank that the indexer's queries need, got 0");
}

}  // namespace

std::vector<float> RopeConfig::frequencies() const {
  std::vector<float> out(static_cast<size_t>(dim / 2));
  // YaRN: pairs that turn more than beta_fast times within the original context keep their frequency, those that turn
  // less than beta_slow times are slowed by `factor`, with a linear ramp between.
  const double d = static_cast<double>(dim);
  auto pair_of = [&](double turns) {
    return d * std::log(static_cast<double>(original_context) / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
  };
  double low = 0, high = 0;
  if (is_yarn) {
    low = std::max(0.0, std::floor(pair_of(beta_fast)));
    high = std::min(d - 1, std::ceil(pair_of(beta_slow)));
    if (low == high) high += 0.001;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    const double f = std::pow(base, -2.0 * static_cast<double>(i) / d);
    const double slowed = is_yarn ? std::min(1.0, std::max(0.0, (static_cast<double>(i) - low) / (high - low))) : 1.0;
    out[i] = static_cast<float>(f / factor * slowed + f * (1 - slowed));
  }
  return out;
}

double RopeConfig::softmax_magnitude() const {
  if (!is_yarn || factor <= 1) return 1;
  const double m = 1 + log_multiplier * std::log(factor);
  return m * m;
}

float Config::softmax_scale() const {
  return static_cast<float>(rope.softmax_magnitude() / std::sqrt(static_cast<double>(qk_head_dim())));
}

bool Config::chooses_at(int64_t position) const {
  if (has_indexer()) return position >= index_topk;
  return v4 && v4->index_topk > 0 && (position + 1) / kIndexedRatio > v4->index_topk;
}

std::vector<CacheRows> Config::cache_rows() const {
  if (attention != Attention::kCompressed) {
    const int64_t elements = attention == Attention::kLatent ? kv_lora_rank + rope.dim : 2 * n_heads * qk_head_dim();
    std::vector<CacheRows> rows(static_cast<size_t>(n_layers), CacheRows{elements});
    if (has_indexer()) rows.insert(rows.end(), static_cast<size_t>(n_layers), CacheRows{index_head_dim});
    if (caches_mtp) rows.push_back(CacheRows{elements});
    if (caches_mtp && has_indexer()) rows.push_back(CacheRows{index_head_dim});
    return rows;
  }
  std::vector<CacheRows> rows;
  const auto add_compressor = [&](int64_t ratio, int64_t elements) {
    rows.push_back({2 * V4Config::channel_sets(ratio) * elements, 1, true, true});
    rows.push_back({elements, ratio});
  };
  for (const int64_t ratio : v4->compress_ratios) {
    rows.push_back({v4->head_dim, 1, true});
    if (ratio > 0) add_compressor(ratio, v4->head_dim);
    if (ratio == kIndexedRatio) add_compressor(ratio, v4->index_head_dim);
  }
  return rows;
}

int64_t Config::recent_tokens() const {
  if (attention != Attention::kCompressed) return 0;
  // A token sees the window's tokens, its own included; a row is made of its own tokens and, overlapping, those before.
  int64_t n = v4->sliding_window - 1;
  for (const int64_t ratio : v4->compress_ratios) n = std::max(n, V4Config::channel_sets(ratio) * ratio - 1);
  return n;
}

bool is_supported(const std::string& architecture) {
  return architecture == "deepseek" || architecture == "deepseek2" || architecture == "deepseek32" ||
         architecture == "deepseek4";
}

Config read_config(const Metadata& metadata, bool has_mtp_tensors, bool has_router_bias) {
  const std::string* architecture = metadata.text("general.architecture");
  if (architecture == nullptr || !is_supported(*architecture)) {
    throw Error(ErrorCode::kModel,
                "model configuration: architecture is not supported; expected deepseek, deepseek2, deepseek32 or "
                "deepseek4, got " +
                    (architecture ? "'" + *architecture + "'" : std::string("none")) +
                    "; try a DeepSeek V1, V2, V3, R1, V3.1, V3.2 or V4 model");
  }
  const Reader r(metadata, *architecture);
  Config c;
  c.architecture = *architecture;
  if (const std::string* name = metadata.text("general.name")) c.name = *name;
  c.attention = *architecture == "deepseek"    ? Attention::kMultiHead
                : *architecture == "deepseek4" ? Attention::kCompressed
                                               : Attention::kLatent;
  const bool is_v32 = *architecture == "deepseek32";
  c.n_layers = r.required_int("block_count", 1, kMaxLayers);
  // V3.2's converters count the MTP layer among the blocks, whether its tensors were kept or not.
  if (has_mtp_tensors || (is_v32 && r.int_or("nextn_predict_layers", 0, c.n_layers, 0) > 0)) {
    c.n_mtp_layers = std::max<int64_t>(1, r.int_or("nextn_predict_layers", 0, c.n_layers, 1));
    c.n_layers -= c.n_mtp_layers;
    if (c.n_layers < 1)
      r.refuse("nextn_predict_layers", "expected fewer than block_count, got " + std::to_string(c.n_mtp_layers));
  }
  c.hidden_size = r.required_int("embedding_length", 1, kMaxWidth);
  c.context_length = r.required_int("context_length", 1, kMaxContext);
  c.n_heads = r.required_int("attention.head_count", 1, kMaxHeads);
  c.rms_eps = r.number_or("attention.layer_norm_rms_epsilon", 1e-30, 1.0, 1e-6);
  c.n_dense_layers = std::min(c.n_layers, r.int_or("leading_dense_block_count", 0, kMaxLayers, 0));
  c.n_experts = r.int_or("expert_count", 0, kMaxExperts, 0);
  if (c.n_experts == 0) c.n_dense_layers = c.n_layers;
  if (c.n_dense_layers > 0) c.dense_ffn_size = r.required_int("feed_forward_length", 1, kMaxWidth);
  if (c.n_dense_layers < c.n_layers) {
    c.n_shared_experts = r.int_or("expert_shared_count", 0, kMaxExperts, 0);
    c.expert_ffn_size = r.required_int("expert_feed_forward_length", 1, kMaxWidth);
    c.router = read_router(r, c, has_router_bias);
  }
  if (c.attention == Attention::kCompressed) {
    read_v4(r, c);
    return c;
  }
  c.rope = read_rope(r, c);
  int64_t qk_head_dim = 0;
  if (c.attention == Attention::kMultiHead) {
    qk_head_dim = r.int_or("attention.key_length", 1, kMaxWidth, c.hidden_size / c.n_heads);
    c.v_head_dim = r.int_or("attention.value_length", 1, kMaxWidth, qk_head_dim);
    const int64_t kv_heads = r.int_or("attention.head_count_kv", 1, kMaxHeads, c.n_heads);
    if (kv_heads != c.n_heads)
      r.refuse("attention.head_count_kv",
               "expected as many as head_count = " + std::to_string(c.n_heads) + ", got " + std::to_string(kv_heads));
    if (c.v_head_dim != qk_head_dim)
      r.refuse("attention.value_length",
               "expected key_length = " + std::to_string(qk_head_dim) + ", got " + std::to_string(c.v_head_dim));
  } else {
    c.q_lora_rank = r.int_or("attention.q_lora_rank", 0, kMaxWidth, 0);
    c.kv_lora_rank = r.required_int("attention.kv_lora_rank", 1, kMaxWidth);
    // Files with split projections describe the latent cache in key_length (576) and the heads in key_length_mla (192).
    const std::string suffix = r.optional_int("attention.key_length_mla", 1, kMaxWidth) ? "_mla" : "";
    qk_head_dim = r.required_int("attention.key_length" + suffix, 1, kMaxWidth);
    c.v_head_dim = r.required_int("attention.value_length" + suffix, 1, kMaxWidth);
  }
  if (is_v32) read_indexer(r, c);
  c.qk_nope_head_dim = qk_head_dim - c.rope.dim;
  if (c.qk_nope_head_dim < 0 || (c.attention == Attention::kLatent && c.qk_nope_head_dim == 0)) {
    r.refuse("rope.dimension_count", "expected less than the head's " + std::to_string(qk_head_dim) +
                                         " dimensions, got " + std::to_string(c.rope.dim));
  }
  return c;
}

}  // namespace fathom::deepseek
