#include "convert/hf_config.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/file_io.h"
#include "core/printable.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

// Far above any model; keep products of three within int64.
constexpr int64_t kMaxLayers = 1024, kMaxHeads = 65536, kMaxWidth = int64_t{1} << 20, kMaxExperts = 65536,
                  kMaxVocab = int64_t{1} << 22, kMaxContext = int64_t{1} << 31;
constexpr uintmax_t kMaxConfigBytes = 16 << 20;

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// The members of a JSON object of config.json, with checks that name the field.
class Fields {
 public:
  Fields(const Json& object, std::string path, std::string prefix = "")
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

  [[noreturn]] void refuse(const std::string& field, const std::string& expected, const std::string& got) const {
    throw Error(ErrorCode::kModel, printable(path_, 400) + ": field '" + prefix_ + field + "' is unusable; expected " +
                                       expected + ", got " + got + "; try the checkpoint's own config.json");
  }

  /// Null where absent or null.
  const Json* find(const std::string& field) const {
    const auto it = object_.find(field);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  static std::string shown(const Json* value) {
    return value == nullptr ? "nothing" : printable(value->dump(-1, ' ', false, Json::error_handler_t::replace), 60);
  }

  std::optional<int64_t> optional_int(const std::string& field, int64_t low, int64_t high) const {
    const Json* value = find(field);
    if (value == nullptr) return std::nullopt;
    const std::string expected = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)))
      refuse(field, expected, shown(value));
    const int64_t n = value->get<int64_t>();
    if (n < low || n > high) refuse(field, expected, shown(value));
    return n;
  }
  int64_t required_int(const std::string& field, int64_t low, int64_t high) const {
    const std::optional<int64_t> n = optional_int(field, low, high);
    if (!n) refuse(field, "an integer from " + std::to_string(low) + " to " + std::to_string(high), "nothing");
    return *n;
  }
  std::optional<double> optional_number(const std::string& field, double low, double high) const {
    const Json* value = find(field);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high))
      refuse(field, "a number from " + number_text(low) + " to " + number_text(high), shown(value));
    return value->get<double>();
  }
  double required_number(const std::string& field, double low, double high) const {
    const std::optional<double> n = optional_number(field, low, high);
    if (!n) refuse(field, "a number from " + number_text(low) + " to " + number_text(high), "nothing");
    return *n;
  }
  bool bool_or(const std::string& field, bool fallback) const {
    const Json* value = find(field);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) refuse(field, "true or false", shown(value));
    return value->get<bool>();
  }
  std::string text_or(const std::string& field, const std::string& fallback) const {
    const Json* value = find(field);
    if (value == nullptr) return fallback;
    if (!value->is_string()) refuse(field, "a text", shown(value));
    return value->get<std::string>();
  }
  /// Nothing where absent or null.
  std::optional<Fields> object(const std::string& field) const {
    const Json* value = find(field);
    if (value == nullptr) return std::nullopt;
    if (!value->is_object()) refuse(field, "an object", shown(value));
    return Fields(*value, path_, prefix_ + field + ".");
  }
  std::vector<int64_t> integers(const std::string& field, int64_t low, int64_t high) const {
    const Json* value = find(field);
    if (value == nullptr || !value->is_array()) refuse(field, "a list of integers", shown(value));
    std::vector<int64_t> out;
    for (const Json& element : *value) {
      if (!element.is_number_integer() || element.get<int64_t>() < low || element.get<int64_t>() > high) {
        refuse(field, "integers from " + std::to_string(low) + " to " + std::to_string(high), shown(&element));
      }
      out.push_back(element.get<int64_t>());
    }
    return out;
  }

 private:
  const Json& object_;
  std::string path_, prefix_;
};

Json read_object(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::is_regular_file(path, error) ? std::filesystem::file_size(path, error) : 0;
  const std::optional<std::string> text =
      error || size == 0 || size > kMaxConfigBytes ? std::nullopt : read_whole(path);
  if (!text) {
    throw Error(ErrorCode::kModel,
                printable(path, 400) +
                    ": cannot read it; expected the configuration of a Hugging Face checkpoint, got no such file, an "
                    "empty or an enormous one; try a folder with config.json, tokenizer.json and safetensors files");
  }
  // A JSON bomb of brackets would overflow the stack of a recursive destructor: config.json nests a few levels.
  const Json json = Json::parse(
      *text, [](int depth, Json::parse_event_t, Json&) { return depth < 32; }, /*allow_exceptions=*/false);
  if (!json.is_object())
    throw Error(
        ErrorCode::kModel,
        printable(path, 400) + ": not usable; expected a JSON object, got something else; try to download it again");
  return json;
}

/// The folder's name; in the hub's cache, models--OWNER--NAME/snapshots/HASH, the model's.
std::string model_name(const std::string& folder) {
  std::error_code ignored;
  std::filesystem::path plain = std::filesystem::weakly_canonical(folder, ignored);
  if (!plain.has_filename()) plain = plain.parent_path();
  const std::filesystem::path cache = plain.parent_path().parent_path();
  const std::string cached = cache.filename().string();
  const size_t dashes = cached.rfind("--");
  if (plain.parent_path().filename() == "snapshots" && cached.starts_with("models--") && dashes != std::string::npos)
    return cached.substr(dashes + 2);
  return plain.filename().string();
}

struct Kind {
  const char* model_type;
  HfGeneration generation;
  const char* architecture;
};
constexpr Kind kKinds[] = {
    {"deepseek", HfGeneration::kV1, "deepseek"},     {"deepseek_v2", HfGeneration::kV2, "deepseek2"},
    {"deepseek_v3", HfGeneration::kV3, "deepseek2"}, {"deepseek_v32", HfGeneration::kV32, "deepseek32"},
    {"deepseek_v4", HfGeneration::kV4, "deepseek4"},
};

void read_rope(const Fields& f, HfConfig& c) {
  c.rope_theta = f.optional_number("rope_theta", 1.0, 1e12).value_or(10000.0);
  // transformers 5 writes rope_parameters, with the base inside.
  const char* const name =
      f.find("rope_scaling") == nullptr && f.find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const std::optional<Fields> scaling = f.object(name);
  if (!scaling) return;
  if (std::string(name) == "rope_parameters")
    c.rope_theta = scaling->optional_number("rope_theta", 1.0, 1e12).value_or(c.rope_theta);
  const std::string type = scaling->text_or("type", scaling->text_or("rope_type", "default"));
  if (type == "default") return;
  if (type != "yarn") scaling->refuse("type", "yarn", in_quotes(type));
  HfRopeScaling s;
  s.factor = scaling->required_number("factor", 1e-3, 1e6);
  s.original_context = scaling->required_int("original_max_position_embeddings", 1, kMaxContext);
  s.beta_fast = scaling->optional_number("beta_fast", 1e-3, 1e6).value_or(32);
  s.beta_slow = scaling->optional_number("beta_slow", 1e-3, 1e6).value_or(1);
  s.mscale_all_dim = scaling->optional_number("mscale_all_dim", 0, 100);
  c.rope_scaling = s;
}

void read_experts(const Fields& f, HfConfig& c) {
  if (c.generation != HfGeneration::kV4) {
    c.intermediate_size = f.required_int("intermediate_size", 1, kMaxWidth);
    c.n_dense_layers = f.optional_int("first_k_dense_replace", 0, kMaxLayers).value_or(0);
    if (f.optional_int("moe_layer_freq", 1, kMaxLayers).value_or(1) != 1)
      f.refuse("moe_layer_freq", "1", Fields::shown(f.find("moe_layer_freq")));
  }
  c.n_experts = f.required_int("n_routed_experts", 1, kMaxExperts);
  c.n_experts_used = f.required_int("num_experts_per_tok", 1, c.n_experts);
  c.n_shared_experts = f.optional_int("n_shared_experts", 0, kMaxExperts).value_or(0);
  c.moe_intermediate_size = f.required_int("moe_intermediate_size", 1, kMaxWidth);
  c.routed_scaling_factor = f.optional_number("routed_scaling_factor", 1e-6, 1e6).value_or(1.0);
  c.norm_topk_prob = f.bool_or("norm_topk_prob", false);
  const std::string score =
      f.text_or("scoring_func", c.generation == HfGeneration::kV4 ? "sqrtsoftplus"
                                : c.generation == HfGeneration::kV3 || c.generation == HfGeneration::kV32 ? "sigmoid"
                                                                                                          : "softmax");
  c.gating_func = score == "softmax" ? 1 : score == "sigmoid" ? 2 : score == "sqrtsoftplus" ? 4 : 0;
  if (c.gating_func == 0) f.refuse("scoring_func", "softmax, sigmoid or sqrtsoftplus", in_quotes(score));
  const bool is_biased = c.generation == HfGeneration::kV3 || c.generation == HfGeneration::kV32;
  c.has_router_bias = f.text_or("topk_method", is_biased ? "noaux_tc" : "greedy") == "noaux_tc";
  if (const auto groups = f.optional_int("n_group", 0, kMaxExperts); groups && c.is_mla()) {
    c.n_group = *groups;
    c.topk_group = f.required_int("topk_group", 0, kMaxExperts);
  }
}

void read_v4(const Fields& f, HfConfig& c) {
  c.head_dim = f.required_int("head_dim", 1, kMaxWidth);
  c.qk_rope_head_dim = f.required_int("qk_rope_head_dim", 2, c.head_dim);
  c.q_lora_rank = f.required_int("q_lora_rank", 1, kMaxWidth);
  c.o_groups = f.required_int("o_groups", 1, c.n_heads);
  if (c.n_heads % c.o_groups != 0)
    f.refuse("o_groups", "a divisor of " + std::to_string(c.n_heads) + " heads", std::to_string(c.o_groups));
  c.o_lora_rank = f.required_int("o_lora_rank", 1, kMaxWidth);
  c.n_hash_layers = f.optional_int("num_hash_layers", 0, c.n_layers).value_or(0);
  c.sliding_window = f.required_int("sliding_window", 1, kMaxContext);
  c.hc_mult = f.required_int("hc_mult", 1, 64);
  c.hc_sinkhorn_iters = f.required_int("hc_sinkhorn_iters", 1, 1000);
  c.hc_eps = f.required_number("hc_eps", 0, 1);
  c.swiglu_limit = f.optional_number("swiglu_limit", 0, 1e30).value_or(0);
  c.compress_rope_theta = f.required_number("compress_rope_theta", 1, 1e12);
  c.compress_ratios = f.integers("compress_ratios", 0, 1 << 20);
  if (static_cast<int64_t>(c.compress_ratios.size()) < c.n_layers) {
    f.refuse("compress_ratios", "at least " + std::to_string(c.n_layers) + " entries, one a layer",
             std::to_string(c.compress_ratios.size()));
  }
}

void read_attention(const Fields& f, HfConfig& c) {
  c.n_heads = f.required_int("num_attention_heads", 1, kMaxHeads);
  c.n_kv_heads = f.optional_int("num_key_value_heads", 1, kMaxHeads).value_or(c.n_heads);
  if (f.bool_or("attention_bias", false)) f.refuse("attention_bias", "false", "true");
  if (c.generation == HfGeneration::kV4) {
    read_v4(f, c);
  } else if (c.generation == HfGeneration::kV1) {
    c.head_dim = f.optional_int("head_dim", 2, kMaxWidth).value_or(c.hidden_size / c.n_heads);
    if (c.head_dim < 2 || c.head_dim % 2 != 0)
      f.refuse("num_attention_heads", "heads of an even number of dimensions",
               Fields::shown(f.find("num_attention_heads")));
  } else {
    c.q_lora_rank = f.optional_int("q_lora_rank", 0, kMaxWidth).value_or(0);
    c.kv_lora_rank = f.required_int("kv_lora_rank", 1, kMaxWidth);
    c.qk_nope_head_dim = f.required_int("qk_nope_head_dim", 1, kMaxWidth);
    c.qk_rope_head_dim = f.required_int("qk_rope_head_dim", 2, kMaxWidth);
    c.v_head_dim = f.required_int("v_head_dim", 1, kMaxWidth);
  }
  if (c.generation == HfGeneration::kV32 || c.generation == HfGeneration::kV4) {
    c.index_n_heads = f.required_int("index_n_heads", 1, kMaxHeads);
    c.index_head_dim = f.required_int("index_head_dim", 1, kMaxWidth);
    c.index_topk = f.required_int("index_topk", 1, kMaxContext);
  }
}

void read_quantization(const Fields& f, HfConfig& c) {
  const std::optional<Fields> q = f.object("quantization_config");
  if (!q) return;
  const std::string method = q->text_or("quant_method", "fp8");
  if (method != "fp8") q->refuse("quant_method", "fp8", in_quotes(method));
  if (const std::string format = q->text_or("fmt", "e4m3"); format != "e4m3")
    q->refuse("fmt", "e4m3", in_quotes(format));
  if (q->find("weight_block_size") == nullptr) return;
  const std::vector<int64_t> block = q->integers("weight_block_size", 1, kMaxWidth);
  if (block.size() != 2) q->refuse("weight_block_size", "rows and columns", std::to_string(block.size()) + " numbers");
  c.fp8_block = ScaleBlock{block[0], block[1]};
}

}  // namespace

HfConfig read_hf_config(const std::string& folder) {
  HfConfig c;
  c.path = (std::filesystem::path(folder) / "config.json").string();
  const Json json = read_object(c.path);
  const Fields f(json, c.path);
  const std::string model_type = f.text_or("model_type", "");
  const auto kind =
      std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return model_type == k.model_type; });
  if (kind == std::end(kKinds))
    throw Error(ErrorCode::kModel,
                printable(c.path, 400) +
                    ": a model of another family; expected model_type deepseek, deepseek_v2, deepseek_v3, "
                    "deepseek_v32 or deepseek_v4, got " +
                    (model_type.empty() ? "nothing" : in_quotes(model_type)) +
                    "; try a checkpoint of DeepSeek V1 to V4");
  c.generation = kind->generation;
  c.architecture = kind->architecture;
  c.name = printable(model_name(folder));

  c.vocab_size = f.required_int("vocab_size", 1, kMaxVocab);
  c.hidden_size = f.required_int("hidden_size", 1, kMaxWidth);
  c.n_layers = f.required_int("num_hidden_layers", 1, kMaxLayers);
  c.n_mtp_layers = f.optional_int("num_nextn_predict_layers", 0, 64).value_or(0);
  c.max_position = f.required_int("max_position_embeddings", 1, kMaxContext);
  c.rms_norm_eps = f.required_number("rms_norm_eps", 0, 1);
  c.is_tied = f.bool_or("tie_word_embeddings", false);
  if (const std::string act = f.text_or("hidden_act", "silu"); act != "silu")
    f.refuse("hidden_act", "silu", in_quotes(act));
  read_rope(f, c);
  read_attention(f, c);
  read_experts(f, c);
  read_quantization(f, c);
  return c;
}

}  // namespace fathom
