#include "deepseek/config_v4.h"

#include <algorithm>

#include "ops/hyper_connections.h"

namespace fathom::deepseek {
namespace {

/// A list of at least n numbers, or one for all.
std::vector<double> numbers(const Reader& r, const std::string& key, int64_t n, double low, double high,
                            std::vector<double> fallback) {
  std::vector<double> list = r.numbers(key).value_or(std::move(fallback));
  if (list.size() == 1) list.resize(static_cast<size_t>(n), list[0]);
  if (static_cast<int64_t>(list.size()) < n)
    r.refuse(key, "expected a value for each of " + std::to_string(n) + " layers, got " + std::to_string(list.size()));
  list.resize(static_cast<size_t>(n));
  for (const double x : list) {
    if (!(x >= low && x <= high))
      r.refuse(key, "expected values from " + std::to_string(low) + " to " + std::to_string(high) + ", got " +
                        std::to_string(x));
  }
  return list;
}

/// Zero, or no key: no limit.
std::vector<float> limits(const std::vector<double>& list) {
  std::vector<float> out;
  for (const double x : list) out.push_back(x > 0 ? static_cast<float>(x) : kNoClamp);
  return out;
}

void read_ropes(const Reader& r, Config& c) {
  RopeConfig rope;
  rope.dim = r.int_or("rope.dimension_count", 2, 65536, 64);
  if (rope.dim % 2 != 0 || rope.dim > c.v4->head_dim) {
    r.refuse("rope.dimension_count", "expected an even number of at most the head's " + std::to_string(c.v4->head_dim) +
                                         " dimensions, got " + std::to_string(rope.dim));
  }
  rope.base = r.number_or("rope.freq_base", 1.0, 1e12, 10000.0);
  c.rope = rope;
  // Early files name the base of compressed layers as that of a second kind of layers is named elsewhere.
  RopeConfig& compress = c.v4->compress_rope = rope;
  compress.base = r.number_or("attention.compress_rope_freq_base", 1.0, 1e12,
                              r.number_or("rope.freq_base_swa", 1.0, 1e12, 160000.0));
  const std::string* type = r.text("rope.scaling.type");
  if (type == nullptr || *type == "none" || type->empty()) return;
  if (*type != "yarn") r.refuse("rope.scaling.type", "expected yarn or none, got '" + *type + "'");
  compress.is_yarn = true;
  compress.factor = r.number_or("rope.scaling.factor", 1e-3, 1e6, 16.0);
  compress.original_context = r.int_or("rope.scaling.original_context_length", 1, kMaxContext, 65536);
  compress.beta_fast = r.number_or("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0);
  compress.beta_slow = r.number_or("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0);
}

}  // namespace

void read_v4(const Reader& r, Config& c) {
  V4Config& v4 = c.v4.emplace();
  c.q_lora_rank = r.required_int("attention.q_lora_rank", 1, kMaxWidth);
  v4.head_dim = r.required_int("attention.key_length", 2, kMaxWidth);
  const int64_t value = r.int_or("attention.value_length", 1, kMaxWidth, v4.head_dim);
  if (value != v4.head_dim)
    r.refuse("attention.value_length",
             "expected key_length = " + std::to_string(v4.head_dim) + ", got " + std::to_string(value));
  const int64_t kv_heads = r.int_or("attention.head_count_kv", 1, kMaxHeads, 1);
  if (kv_heads != 1) r.refuse("attention.head_count_kv", "expected 1, got " + std::to_string(kv_heads));
  read_ropes(r, c);
  c.qk_nope_head_dim = v4.head_dim - c.rope.dim;
  c.v_head_dim = v4.head_dim;
  v4.o_groups = r.required_int("attention.output_group_count", 1, kMaxHeads);
  if (c.n_heads % v4.o_groups != 0) {
    r.refuse("attention.output_group_count", "expected a divisor of head_count = " + std::to_string(c.n_heads) +
                                                 ", got " + std::to_string(v4.o_groups));
  }
  v4.o_lora_rank = r.required_int("attention.output_lora_rank", 1, kMaxWidth);
  v4.sliding_window = r.int_or("attention.sliding_window", 1, kMaxContext, 128);
  for (const double ratio : numbers(r, "attention.compress_ratios", c.n_layers, 0, 128, {})) {
    // Rows of other counts of tokens would not divide the cache's pages.
    const auto n = static_cast<int64_t>(ratio);
    if (n != 0 && n != kIndexedRatio && n != 128)
      r.refuse("attention.compress_ratios", "expected 0, 4 or 128, got " + std::to_string(n));
    v4.compress_ratios.push_back(n);
  }
  if (std::find(v4.compress_ratios.begin(), v4.compress_ratios.end(), kIndexedRatio) != v4.compress_ratios.end()) {
    v4.index_n_heads = r.required_int("attention.indexer.head_count", 1, kMaxHeads);
    v4.index_head_dim = r.required_int("attention.indexer.key_length", 2, kMaxWidth);
    v4.index_topk = r.required_int("attention.indexer.top_k", 1, kMaxContext);
    if (v4.index_head_dim < c.rope.dim) {
      r.refuse("attention.indexer.key_length", "expected at least the " + std::to_string(c.rope.dim) +
                                                   " rotated dimensions, got " + std::to_string(v4.index_head_dim));
    }
  }
  v4.hc_mult = r.int_or("hyper_connection.count", 1, kMaxStreams, 4);
  v4.hc_sinkhorn_iters = r.int_or("hyper_connection.sinkhorn_iterations", 1, 1000, 20);
  v4.hc_eps = r.number_or("hyper_connection.epsilon", 0.0, 1.0, 1e-6);
  v4.n_hash_layers = std::min(c.n_layers, r.int_or("hash_layer_count", 0, kMaxLayers, 0));
  const std::vector<double> clamp = numbers(r, "swiglu_clamp_exp", c.n_layers, 0.0, 1e30, {0.0});
  v4.swiglu_clamp = limits(clamp);
  v4.shared_swiglu_clamp = limits(numbers(r, "swiglu_clamp_shexp", c.n_layers, 0.0, 1e30, clamp));
  if (c.n_dense_layers > 0)
    r.refuse("leading_dense_block_count", "expected 0, got " + std::to_string(c.n_dense_layers));
}

}  // namespace fathom::deepseek
