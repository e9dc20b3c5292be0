#include "engine/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "core/buffer.h"
#include "core/error.h"
#include "core/host_memory.h"
#include "core/plain_text.h"
#include "core/quant/quantize.h"
#include "core/threads.h"
#include "engine/synthetic_builder.h"
#include "engine/synthetic_v4.h"

namespace fathom {
namespace {

/// A released model's numbers (its config.json).
struct ReleasedShape {
  const char* name;
  int64_t hidden, layers, dense_layers, heads, q_lora, ffn, experts, used, shared, expert_ffn, vocab, groups,
      groups_used;
  bool sigmoid;
  double scale;
  int64_t index_topk = 0;  ///< tokens that the indexer chooses; 0: none
};
constexpr int64_t kIndexHeads = 64, kIndexDim = 128;
constexpr int64_t kLatent = 512, kNope = 128, kRope = 64, kValue = 128;  // of every released MLA model

constexpr std::array kShapes = {
    ReleasedShape{"v2-lite", 2048, 27, 1, 16, 0, 10944, 64, 6, 2, 1408, 102400, 1, 1, false, 1.0},
    ReleasedShape{"v2", 5120, 60, 1, 128, 1536, 12288, 160, 6, 2, 1536, 102400, 8, 3, false, 16.0},
    ReleasedShape{"v3", 7168, 61, 3, 128, 1536, 18432, 256, 8, 1, 2048, 129280, 8, 4, true, 2.5},
    ReleasedShape{"v3.2", 7168, 61, 3, 128, 1536, 18432, 256, 8, 1, 2048, 129280, 8, 4, true, 2.5, 2048},
};

/// About 1 MiB of encoded normal numbers of this row length: copied over and over, they look random to every kernel and
/// are far more than a cache would keep hot beside the rest.
std::vector<std::byte> pattern(DType type, int64_t row, uint32_t seed) {
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 20) / static_cast<int64_t>(row_bytes(type, row)));
  std::vector<std::byte> out(static_cast<size_t>(rows) * row_bytes(type, row));
  std::vector<float> x(static_cast<size_t>(row));
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(row)));
  for (int64_t r = 0; r < rows; ++r) {
    for (float& v : x) v = normal(rng);
    std::byte* at = out.data() + static_cast<size_t>(r) * row_bytes(type, row);
    if (type == DType::kF32) {
      std::memcpy(at, x.data(), x.size() * sizeof(float));
    } else {
      quantize_row(type, x.data(), at, row, nullptr);
    }
  }
  return out;
}

void fill(ModelSource& source) {
  const std::shared_ptr<Buffer> buffer = allocate_heap(source.size_bytes, "the weights of a synthetic model");
  std::map<std::pair<DType, int64_t>, std::vector<std::byte>> patterns;
  std::vector<Tensor*> tensors;
  size_t at = 0;
  for (auto& [name, t] : source.tensors) {
    t.data = buffer->data() + at;
    at += (t.size_bytes() + 63) / 64 * 64;
    if (t.shape.rank == 1) {
      std::fill_n(t.as<float>(), t.dim(0), name.ends_with(".bias") ? 0.0F : 1.0F);
      continue;
    }
    if (t.dtype == DType::kI32) {  // experts of each token: all different
      const auto n_experts = *source.metadata.integer("deepseek4.expert_count");
      for (int64_t i = 0; i < t.shape.n_elements(); ++i) t.as<int32_t>()[i] = static_cast<int32_t>(i * 7 % n_experts);
      continue;
    }
    tensors.push_back(&t);
    auto& p = patterns[{t.dtype, t.shape.last()}];
    if (p.empty()) p = pattern(t.dtype, t.shape.last(), static_cast<uint32_t>(patterns.size()));
  }
  ThreadPool pool(usable_physical_cores());
  pool.run([&](Worker& w) {
    w.share(static_cast<int64_t>(tensors.size()), 1, [&](int64_t i, int64_t) {
      const Tensor& t = *tensors[static_cast<size_t>(i)];
      const std::vector<std::byte>& p = patterns.at({t.dtype, t.shape.last()});
      const size_t total = t.size_bytes();
      for (size_t done = 0; done < total; done += p.size())
        std::memcpy(t.data + done, p.data(), std::min(p.size(), total - done));
    });
  });
  source.owner = buffer;
}

}  // namespace

std::vector<std::string> synthetic_shapes() {
  std::vector<std::string> names;
  for (const ReleasedShape& s : kShapes) names.emplace_back(s.name);
  names.emplace_back(kV4FlashShape);
  return names;
}

namespace {

/// The tensors of V2, V3 or V3.2, without data.
ModelSource mla_tensors(const SyntheticOptions& options, const ReleasedShape& s) {
  const int64_t layers = options.n_layers.value_or(s.layers);
  check_layers(layers, s.layers);
  // A part of the model keeps one dense layer, as rare beside the experts as in the whole.
  const int64_t dense = layers == s.layers ? s.dense_layers : std::min<int64_t>(s.dense_layers, layers > 1 ? 1 : 0);
  const Types types = Types::of(options.type);

  ModelSource source;
  source.path = "synthetic " + options.shape + " " + options.type;
  Metadata& m = source.metadata;
  const std::string architecture = s.index_topk > 0 ? "deepseek32" : "deepseek2";
  auto set_int = [&](const std::string& key, int64_t v) { m.set(architecture + "." + key, v); };
  auto set_number = [&](const std::string& key, double v) { m.set(architecture + "." + key, v); };
  m.set("general.architecture", architecture);
  m.set("general.name", source.path);
  set_int("block_count", layers), set_int("context_length", 163840), set_int("embedding_length", s.hidden),
      set_int("feed_forward_length", s.ffn);
  set_int("attention.head_count", s.heads), set_int("attention.kv_lora_rank", kLatent),
      set_int("rope.dimension_count", kRope);
  if (s.q_lora > 0) set_int("attention.q_lora_rank", s.q_lora);
  set_int("attention.key_length", kLatent + kRope), set_int("attention.value_length", kLatent);
  set_int("attention.key_length_mla", kNope + kRope), set_int("attention.value_length_mla", kValue);
  set_int("leading_dense_block_count", dense), set_int("expert_count", s.experts), set_int("expert_used_count", s.used);
  set_int("expert_shared_count", s.shared), set_int("expert_feed_forward_length", s.expert_ffn),
      set_int("expert_gating_func", s.sigmoid ? 2 : 1);
  set_int("expert_group_count", s.groups), set_int("expert_group_used_count", s.groups_used);
  set_number("expert_weights_scale", s.scale), set_number("rope.freq_base", 10000),
      set_number("rope.scaling.factor", 40);
  m.set(architecture + ".expert_weights_norm", s.sigmoid);
  m.set(architecture + ".rope.scaling.type", std::string("yarn"));
  set_int("rope.scaling.original_context_length", 4096),
      set_number("rope.scaling.yarn_log_multiplier", s.sigmoid ? 0.1 : 0.0707);
  if (s.index_topk > 0) {
    set_int("attention.indexer.head_count", kIndexHeads), set_int("attention.indexer.key_length", kIndexDim),
        set_int("attention.indexer.top_k", s.index_topk);
  }

  Builder b(source);
  b.add_weight("token_embd.weight", types.main, {s.vocab, s.hidden});
  b.add_weight("output.weight", types.head, {s.vocab, s.hidden});
  b.add_norm("output_norm.weight", s.hidden);
  for (int64_t i = 0; i < layers; ++i) {
    const std::string p = "blk." + std::to_string(i) + ".";
    b.add_norm(p + "attn_norm.weight", s.hidden);
    b.add_norm(p + "ffn_norm.weight", s.hidden);
    b.add_norm(p + "attn_kv_a_norm.weight", kLatent);
    if (s.q_lora > 0) {
      b.add_weight(p + "attn_q_a.weight", types.attention, {s.q_lora, s.hidden});
      b.add_norm(p + "attn_q_a_norm.weight", s.q_lora);
      b.add_weight(p + "attn_q_b.weight", types.attention, {s.heads * (kNope + kRope), s.q_lora});
    } else {
      b.add_weight(p + "attn_q.weight", types.attention, {s.heads * (kNope + kRope), s.hidden});
    }
    b.add_weight(p + "attn_kv_a_mqa.weight", types.attention, {kLatent + kRope, s.hidden});
    b.add_weight(p + "attn_k_b.weight", dtype_info(types.attention).is_quantized ? DType::kQ8_0 : types.attention,
                 {s.heads, kLatent, kNope});
    b.add_weight(p + "attn_v_b.weight", types.attention, {s.heads, kValue, kLatent});
    b.add_weight(p + "attn_output.weight", types.attention, {s.hidden, s.heads * kValue});
    if (s.index_topk > 0) {
      const std::string index = p + "indexer.";
      b.add_weight(index + "attn_q_b.weight", types.attention, {kIndexHeads * kIndexDim, s.q_lora});
      b.add_weight(index + "attn_k.weight", types.attention, {kIndexDim, s.hidden});
      b.add_norm(index + "k_norm.weight", kIndexDim);
      b.add_norm(index + "k_norm.bias", kIndexDim);
      b.add(index + "proj.weight", DType::kF32, {kIndexHeads, s.hidden});
    }
    // K-mixes give every other down matrix the larger type.
    const DType down = i % 2 == 0 ? types.down : types.main;
    if (i < dense) {
      b.add_weight(p + "ffn_gate.weight", types.attention, {s.ffn, s.hidden});
      b.add_weight(p + "ffn_up.weight", types.attention, {s.ffn, s.hidden});
      b.add_weight(p + "ffn_down.weight", types.attention == types.main ? down : types.attention, {s.hidden, s.ffn});
      continue;
    }
    b.add(p + "ffn_gate_inp.weight", DType::kF32, {s.experts, s.hidden});
    if (s.sigmoid) b.add_norm(p + "exp_probs_b.bias", s.experts);
    b.add_weight(p + "ffn_gate_exps.weight", types.main, {s.experts, s.expert_ffn, s.hidden});
    b.add_weight(p + "ffn_up_exps.weight", types.main, {s.experts, s.expert_ffn, s.hidden});
    b.add_weight(p + "ffn_down_exps.weight", down, {s.experts, s.hidden, s.expert_ffn});
    b.add_weight(p + "ffn_gate_shexp.weight", types.attention, {s.shared * s.expert_ffn, s.hidden});
    b.add_weight(p + "ffn_up_shexp.weight", types.attention, {s.shared * s.expert_ffn, s.hidden});
    b.add_weight(p + "ffn_down_shexp.weight", types.attention == types.main ? down : types.attention,
                 {s.hidden, s.shared * s.expert_ffn});
  }
  return source;
}

}  // namespace

ModelSource synthetic_model(const SyntheticOptions& options) {
  const auto found =
      std::find_if(kShapes.begin(), kShapes.end(), [&](const ReleasedShape& s) { return options.shape == s.name; });
  if (found == kShapes.end() && options.shape != kV4FlashShape) {
    throw Error(ErrorCode::kUsage,
                "--shape: unknown; expected v2-lite, v2, v3, v3.2 or v4-flash, got '" + options.shape + "'");
  }
  ModelSource source = found == kShapes.end() ? v4_flash_tensors(options) : mla_tensors(options, *found);
  if (options.only_shapes) return source;
  const uint64_t available = available_memory_bytes().value_or(UINT64_MAX);
  if (source.size_bytes > available) {
    const int64_t layers = *source.metadata.integer(*source.metadata.text("general.architecture") + ".block_count");
    throw Error(ErrorCode::kNoMemory,
                "--shape: " + std::to_string(layers) + " layers do not fit in memory; expected " +
                    mib(source.size_bytes) + " free, got " + mib(available) + "; try --layers " +
                    std::to_string(std::max<int64_t>(
                        1, static_cast<int64_t>(static_cast<double>(layers) * 0.8 * static_cast<double>(available) /
                                                static_cast<double>(source.size_bytes)))));
  }
  fill(source);
  return source;
}

}  // namespace fathom
