#include "convert/type_mix.h"

#include <charconv>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "core/plain_text.h"
#include "core/printable.h"
#include "core/quant/quantize.h"

namespace fathom {
namespace {

struct Named {
  std::string_view name;
  DType base;
  int64_t file_type;  ///< llama.cpp's number
};

constexpr Named kMixes[] = {
    {"f32", DType::kF32, 0},          {"f16", DType::kF16, 1},        {"bf16", DType::kBF16, 32},
    {"q8_0", DType::kQ8_0, 7},        {"q4_0", DType::kQ4_0, 2},      {"q4_1", DType::kQ4_1, 3},
    {"q5_0", DType::kQ5_0, 8},        {"q5_1", DType::kQ5_1, 9},      {"q2_k", DType::kQ2_K, 10},
    {"q2_k_s", DType::kQ2_K, 21},     {"q3_k_s", DType::kQ3_K, 11},   {"q3_k_m", DType::kQ3_K, 12},
    {"q3_k_l", DType::kQ3_K, 13},     {"q4_k_s", DType::kQ4_K, 14},   {"q4_k_m", DType::kQ4_K, 15},
    {"q5_k_s", DType::kQ5_K, 16},     {"q5_k_m", DType::kQ5_K, 17},   {"q6_k", DType::kQ6_K, 18},
    {"iq1_s", DType::kIQ1_S, 24},     {"iq1_m", DType::kIQ1_M, 31},   {"iq2_xxs", DType::kIQ2_XXS, 19},
    {"iq2_xs", DType::kIQ2_XS, 20},   {"iq2_s", DType::kIQ2_XS, 28},  {"iq2_m", DType::kIQ2_S, 29},
    {"iq3_xxs", DType::kIQ3_XXS, 23}, {"iq3_xs", DType::kIQ3_S, 22},  {"iq3_s", DType::kIQ3_S, 26},
    {"iq3_m", DType::kIQ3_S, 27},     {"iq4_nl", DType::kIQ4_NL, 25}, {"iq4_xs", DType::kIQ4_XS, 30},
    {"mxfp4", DType::kMXFP4, 38},
};

/// The short names that people type.
std::string_view resolved(std::string_view name) {
  if (name == "q3_k") return "q3_k_m";
  if (name == "q4_k") return "q4_k_m";
  if (name == "q5_k") return "q5_k_m";
  if (name == "mxfp4_moe") return "mxfp4";
  return name;
}

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// "blk.17.": 17; 0 for tensors outside of blocks.
int64_t layer_of(const std::string& tensor) {
  int64_t layer = 0;
  if (tensor.starts_with("blk.")) std::from_chars(tensor.data() + 4, tensor.data() + tensor.size(), layer);
  return layer;
}

/// The first and last eighth of the layers and every third between: where mixes called _M spend more.
bool gets_more_bits(int64_t layer, int64_t n_layers) {
  return layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
}

double bits_per_weight(DType type) { return 8.0 * dtype_info(type).block_bytes / dtype_info(type).block_elements; }

bool is_routed_expert(std::string_view tensor) { return has(tensor, "_exps."); }

}  // namespace

TypeMix TypeMix::named(const std::string& name) {
  const std::string wanted = lower(name);
  for (const Named& mix : kMixes) {
    if (mix.name != resolved(wanted)) continue;
    TypeMix out;
    out.name_ = mix.name;
    out.base_ = mix.base;
    out.file_type_ = mix.file_type;
    return out;
  }
  std::string all;
  for (const Named& mix : kMixes) all += (all.empty() ? "" : " ") + std::string(mix.name);
  throw Error(ErrorCode::kUsage, "--type: unknown; expected one of " + all + ", got " + in_quotes(name));
}

std::vector<std::string> TypeMix::names() {
  std::vector<std::string> all;
  for (const Named& mix : kMixes) all.emplace_back(mix.name);
  return all;
}

bool TypeMix::wants_importance() const { return bits_per_weight(base_) < 2.5 || name_ == "q2_k_s"; }

DType TypeMix::ffn_down_type(int64_t layer, int64_t n, bool has_importance) const {
  const bool is_first_eighth = layer < n / 8, more = gets_more_bits(layer, n);
  if (name_ == "q2_k") return DType::kQ3_K;
  if (name_ == "q2_k_s") return is_first_eighth ? DType::kQ4_K : base_;
  if (name_ == "iq3_xxs" && !has_importance) return is_first_eighth ? DType::kQ4_K : DType::kQ3_K;
  if (name_ == "q3_k_m") return layer < n / 16 ? DType::kQ5_K : more ? DType::kQ4_K : base_;
  if (name_ == "q3_k_l") return DType::kQ5_K;
  if (name_ == "iq3_m") return is_first_eighth ? DType::kQ4_K : base_;
  if (name_ == "q4_k_m" || name_ == "q5_k_m") return more ? DType::kQ6_K : base_;
  if (name_ == "q4_k_s") return is_first_eighth ? DType::kQ5_K : base_;
  if (name_ == "iq4_nl" || name_ == "iq4_xs") return is_first_eighth && !has_importance ? DType::kQ5_K : base_;
  if (name_ == "q4_0" && has_importance && is_first_eighth) return DType::kQ4_1;
  if (name_ == "q5_0" && has_importance && is_first_eighth) return DType::kQ5_1;
  if (name_ == "iq2_s" || name_ == "iq2_m") return is_first_eighth ? DType::kIQ3_S : base_;
  if (name_.starts_with("iq2_") || name_.starts_with("iq1_")) return is_first_eighth ? DType::kQ2_K : base_;
  return base_;
}

DType TypeMix::attn_v_type(int64_t layer, const MixContext& context) const {
  const bool is_shared = context.heads_per_kv_head >= 4;  // one value head serves many: its errors count more often
  if (name_ == "q2_k") return is_shared ? DType::kQ4_K : DType::kQ3_K;
  if (name_ == "q3_k_m") return layer < 2 ? DType::kQ5_K : DType::kQ4_K;
  if (name_ == "q3_k_l") return DType::kQ5_K;
  if (name_ == "iq3_m") return DType::kQ4_K;
  if (name_ == "q4_k_m" || name_ == "q5_k_m") return gets_more_bits(layer, context.n_layers) ? DType::kQ6_K : base_;
  if (name_ == "q4_k_s") return layer < 4 ? DType::kQ5_K : base_;
  if ((name_ == "iq4_nl" || name_ == "iq4_xs") && is_shared) return DType::kQ5_K;
  return base_;
}

DType TypeMix::type_of(const std::string& tensor, const MixContext& context) const {
  if (!dtype_info(base_).is_quantized) return base_;
  // The indexers' and compressors' small projections decide which tokens are seen at all.
  if (has(tensor, "indexer.proj.") || has(tensor, "compressor_kv.") || has(tensor, "compressor_gate."))
    return DType::kF16;
  if (base_ == DType::kMXFP4) return is_routed_expert(tensor) ? base_ : DType::kQ8_0;
  const bool is_low = bits_per_weight(base_) < 4.0;
  const bool is_below_three = bits_per_weight(base_) < 3.0 && name_.starts_with("iq");
  if (tensor == "output.weight" || has(tensor, "shared_head_head.")) {
    if (base_ == DType::kQ8_0) return base_;
    return is_below_three || name_ == "iq3_xxs" ? DType::kQ5_K : DType::kQ6_K;
  }
  if (tensor == "token_embd.weight" || has(tensor, "nextn.embed_tokens.")) {
    if (name_ == "iq2_s" || name_ == "iq2_m" || name_ == "iq3_xxs") return DType::kIQ3_S;
    return is_below_three ? DType::kQ2_K : base_;
  }
  const int64_t layer = layer_of(tensor);
  if (is_routed_expert(tensor) || context.n_experts == 0) {
    if (has(tensor, "ffn_down")) return ffn_down_type(layer, context.n_layers, context.has_importance);
    if (name_ == "iq3_xs" && has(tensor, "ffn_") &&
        !(layer < context.n_layers / 8 || layer >= 7 * context.n_layers / 8))
      return DType::kIQ3_XXS;
    if (is_routed_expert(tensor)) return base_;
  }
  DType type = base_;
  if (has(tensor, "ffn_down")) type = ffn_down_type(layer, context.n_layers, context.has_importance);
  if (has(tensor, "attn_v.")) type = attn_v_type(layer, context);
  if (has(tensor, "attn_output.") && (name_ == "q3_k_l")) type = DType::kQ5_K;
  if (is_low && bits_per_weight(type) < bits_per_weight(DType::kQ4_K)) type = DType::kQ4_K;
  return type;
}

TensorTypeRules::TensorTypeRules(const std::vector<std::string>& rules) {
  for (const std::string& text : rules) {
    const size_t equals = text.rfind('=');
    const std::optional<DType> type =
        equals == std::string::npos ? std::nullopt : dtype_from_name(std::string_view(text).substr(equals + 1));
    if (equals == 0 || !type || !can_quantize(*type)) {
      throw Error(ErrorCode::kUsage,
                  "--tensor-type: unusable rule; expected REGEX=TYPE with a type that can be written, got " +
                      in_quotes(text) + "; try ffn_down_exps=q6_k");
    }
    try {
      rules_.push_back(
          {text, std::regex(text.substr(0, equals), std::regex::ECMAScript | std::regex::optimize), *type});
    } catch (const std::regex_error&) {
      throw Error(ErrorCode::kUsage, "--tensor-type: not a regular expression; expected REGEX=TYPE, got " +
                                         in_quotes(text) + "; try ffn_down_exps=q6_k");
    }
  }
}

const DType* TensorTypeRules::find(const std::string& tensor) {
  for (Rule& rule : rules_) {
    if (!std::regex_search(tensor, rule.pattern)) continue;
    rule.is_used = true;
    return &rule.type;
  }
  return nullptr;
}

void TensorTypeRules::check_all_used() const {
  for (const Rule& rule : rules_) {
    if (!rule.is_used)
      throw Error(ErrorCode::kUsage,
                  "--tensor-type: a rule that no tensor meets; expected an expression found in a name such as "
                  "blk.0.ffn_down_exps.weight, not met by an earlier rule, got " +
                      in_quotes(rule.text));
  }
}

bool is_kept_f32(const std::string& tensor, const Shape& shape) {
  if (shape.rank == 1) return true;
  for (const std::string_view part : {"norm", "ffn_gate_inp", "exp_probs_b", "attn_sinks", "hc_", "_ape"}) {
    if (has(tensor, part)) return true;
  }
  return false;
}

DType fitting_type(DType type, int64_t width) {
  if (width % dtype_info(type).block_elements == 0) return type;
  if (dtype_info(type).block_elements == 256 && width % 32 == 0) {
    switch (type) {
      case DType::kQ4_K: return DType::kQ5_0;
      case DType::kQ5_K: return DType::kQ5_1;
      case DType::kQ6_K: return DType::kQ8_0;
      default: return DType::kIQ4_NL;
    }
  }
  return DType::kF16;
}

}  // namespace fathom
