// Small Hugging Face checkpoints made up on the spot: random weights in the names, shapes and types of the releases.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/fp8.h"
#include "io/safetensors.h"

namespace fathom {

/// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fathom-convert-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// What a tensor stands for, as floats, and its bytes in the checkpoint.
struct MadeTensor {
  SafetensorsType type;
  std::vector<int64_t> shape;
  std::string bytes;
  std::vector<float> meant;  ///< row-major, in the shape of the weight
};

/// A checkpoint under construction. Fields and tensors may be changed before save().
struct MadeCheckpoint {
  nlohmann::json config;
  std::map<std::string, MadeTensor> tensors;
  std::string tokenizer = "deepseek-v3";
  uint32_t state = 1;

  float draw() {  // in (-1, 1), exact in bfloat16
    state = state * 1664525u + 1013904223u;
    return (static_cast<float>(state >> 25) - 63.5F) / 64.0F;
  }

  void bf16(const std::string& name, std::vector<int64_t> shape) {
    MadeTensor t{SafetensorsType::kBF16, shape, "", {}};
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    for (int64_t i = 0; i < n; ++i) {
      t.meant.push_back(draw());
      const uint16_t bits = f32_to_bf16(t.meant.back());
      t.bytes.append(reinterpret_cast<const char*>(&bits), 2);
    }
    tensors[name] = std::move(t);
  }

  void f32(const std::string& name, std::vector<int64_t> shape) {
    bf16(name, shape);
    MadeTensor& t = tensors[name];
    t.type = SafetensorsType::kF32;
    t.bytes.assign(reinterpret_cast<const char*>(t.meant.data()), t.meant.size() * sizeof(float));
  }

  void f16(const std::string& name, std::vector<int64_t> shape) {
    bf16(name, shape);
    MadeTensor& t = tensors[name];
    t.type = SafetensorsType::kF16;
    t.bytes.clear();
    for (const float v : t.meant) {
      const uint16_t bits = f32_to_f16(v);
      t.bytes.append(reinterpret_cast<const char*>(&bits), 2);
    }
  }

  /// F8_E4M3 with an F32 factor per block, or E8M0 as V4 has it.
  void fp8(const std::string& name, int64_t rows, int64_t cols, int64_t block_rows, int64_t block_cols,
           bool is_v4 = false) {
    MadeTensor w{SafetensorsType::kF8_E4M3, {rows, cols}, "", {}};
    const int64_t sr = (rows + block_rows - 1) / block_rows, sc = (cols + block_cols - 1) / block_cols;
    MadeTensor s{is_v4 ? SafetensorsType::kF8_E8M0 : SafetensorsType::kF32, {sr, sc}, "", {}};
    for (int64_t i = 0; i < sr * sc; ++i) {
      const float factor =
          is_v4 ? std::ldexp(1.0F, static_cast<int>(i % 5) - 6) : 0.001F * static_cast<float>(1 + i % 7);
      s.meant.push_back(factor);
      if (is_v4) {
        s.bytes.push_back(static_cast<char>(121 + i % 5));
      } else {
        s.bytes.append(reinterpret_cast<const char*>(&factor), sizeof factor);
      }
    }
    for (int64_t i = 0; i < rows * cols; ++i) {
      const uint8_t code = f32_to_f8_e4m3(draw() * 400);
      w.bytes.push_back(static_cast<char>(code));
      w.meant.push_back(f8_e4m3_to_f32(code) *
                        s.meant[static_cast<size_t>(i / cols / block_rows * sc + i % cols / block_cols)]);
    }
    tensors[is_v4 ? name.substr(0, name.size() - 6) + "scale" : name + "_scale_inv"] = std::move(s);
    tensors[name] = std::move(w);
  }

  /// FP4 pairs with an E8M0 factor per 32 columns.
  void fp4(const std::string& name, int64_t rows, int64_t cols) {
    constexpr float kValues[8] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
    MadeTensor w{SafetensorsType::kI8, {rows, cols / 2}, "", {}},
        s{SafetensorsType::kF8_E8M0, {rows, cols / 32}, "", {}};
    for (int64_t i = 0; i < rows * cols / 32; ++i) s.bytes.push_back(static_cast<char>(118 + i % 7));
    for (int64_t i = 0; i < rows * cols; ++i) {
      state = state * 1664525u + 1013904223u;
      const int code = static_cast<int>(state >> 28);
      if (i % 2 == 0) {
        w.bytes.push_back(static_cast<char>(code));
      } else {
        w.bytes.back() = static_cast<char>(w.bytes.back() | code << 4);
      }
      w.meant.push_back((code & 8 ? -1.0F : 1.0F) * kValues[code & 7] *
                        std::ldexp(1.0F, static_cast<int>(118 + i / 32 % 7) - 127));
    }
    tensors[name.substr(0, name.size() - 6) + "scale"] = std::move(s);
    tensors[name] = std::move(w);
  }

  /// Writes config.json, the tokenizer, and n_files safetensors files with an index (one: without).
  void save(const std::string& folder, size_t n_files = 1) const {
    std::filesystem::create_directories(folder);
    write_bytes(folder + "/config.json", config.dump());
    write_bytes(folder + "/tokenizer.json",
                read_bytes(std::string(FATHOM_FIXTURES "/tokenizers/") + tokenizer + "/tokenizer.json"));
    std::vector<std::vector<SafetensorsItem>> files(n_files);
    nlohmann::json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", nlohmann::json::object()}};
    size_t k = 0;
    for (const auto& [name, t] : tensors) {
      const size_t file = k++ % n_files;  // experts straddle the files
      files[file].push_back({name, t.type, t.shape, t.bytes.data()});
      index["weight_map"][name] = file_name(file, n_files);
    }
    for (size_t i = 0; i < n_files; ++i) write_safetensors(folder + "/" + file_name(i, n_files), files[i]);
    if (n_files > 1) write_bytes(folder + "/model.safetensors.index.json", index.dump());
  }

  static std::string file_name(size_t i, size_t n) {
    return n == 1 ? "model.safetensors"
                  : "model-0000" + std::to_string(i + 1) + "-of-00000" + std::to_string(n) + ".safetensors";
  }
};

constexpr int64_t kVocab = 2048;  // above the ids of the fixtures' tokenizers

/// V3 with an MTP layer: hidden 64, 2 layers, 4 experts. Linear weights FP8 in blocks of `fp8_block` if that is not 0.
inline MadeCheckpoint made_v3(int64_t fp8_block = 0) {
  MadeCheckpoint c;
  c.config = {{"model_type", "deepseek_v3"},
              {"vocab_size", kVocab},
              {"hidden_size", 64},
              {"num_hidden_layers", 2},
              {"num_nextn_predict_layers", 1},
              {"max_position_embeddings", 512},
              {"rms_norm_eps", 1e-6},
              {"rope_theta", 10000.0},
              {"num_attention_heads", 2},
              {"num_key_value_heads", 2},
              {"q_lora_rank", 32},
              {"kv_lora_rank", 32},
              {"qk_nope_head_dim", 32},
              {"qk_rope_head_dim", 16},
              {"v_head_dim", 16},
              {"intermediate_size", 96},
              {"first_k_dense_replace", 1},
              {"n_routed_experts", 4},
              {"num_experts_per_tok", 2},
              {"n_shared_experts", 1},
              {"moe_intermediate_size", 32},
              {"n_group", 2},
              {"topk_group", 1},
              {"routed_scaling_factor", 2.5},
              {"norm_topk_prob", true},
              {"scoring_func", "sigmoid"},
              {"topk_method", "noaux_tc"},
              {"rope_scaling",
               {{"type", "yarn"},
                {"factor", 40},
                {"original_max_position_embeddings", 64},
                {"mscale", 1.0},
                {"mscale_all_dim", 1.0}}}};
  if (fp8_block > 0)
    c.config["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {fp8_block, fp8_block}}};
  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols) {
    fp8_block > 0 ? c.fp8(name, rows, cols, fp8_block, fp8_block) : c.bf16(name, {rows, cols});
  };
  c.bf16("model.embed_tokens.weight", {kVocab, 64});
  c.bf16("model.norm.weight", {64});
  c.bf16("lm_head.weight", {kVocab, 64});
  for (int64_t i = 0; i < 3; ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".", a = p + "self_attn.";
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) c.bf16(p + norm + ".weight", {64});
    linear(a + "q_a_proj.weight", 32, 64);
    c.bf16(a + "q_a_layernorm.weight", {32});
    linear(a + "q_b_proj.weight", 96, 32);
    linear(a + "kv_a_proj_with_mqa.weight", 48, 64);
    c.bf16(a + "kv_a_layernorm.weight", {32});
    linear(a + "kv_b_proj.weight", 96, 32);
    linear(a + "o_proj.weight", 64, 32);
    const auto mlp = [&](const std::string& m, int64_t width) {
      linear(m + "gate_proj.weight", width, 64);
      linear(m + "up_proj.weight", width, 64);
      linear(m + "down_proj.weight", 64, width);
    };
    if (i == 0) {
      mlp(p + "mlp.", 96);
    } else {
      c.bf16(p + "mlp.gate.weight", {4, 64});
      c.f32(p + "mlp.gate.e_score_correction_bias", {4});
      for (int e = 0; e < 4; ++e) mlp(p + "mlp.experts." + std::to_string(e) + ".", 32);
      mlp(p + "mlp.shared_experts.", 32);
    }
    if (i < 2) continue;
    c.bf16(p + "embed_tokens.weight", {kVocab, 64});
    c.bf16(p + "enorm.weight", {64});
    c.bf16(p + "hnorm.weight", {64});
    c.bf16(p + "eh_proj.weight", {64, 128});
    c.bf16(p + "shared_head.norm.weight", {64});
    c.bf16(p + "shared_head.head.weight", {kVocab, 64});
  }
  return c;
}

/// V3.2: V3 with an indexer of 2 heads of 32 that chooses 16 tokens.
inline MadeCheckpoint made_v32(int64_t fp8_block = 0) {
  MadeCheckpoint c = made_v3(fp8_block);
  c.config["model_type"] = "deepseek_v32";
  c.config["index_n_heads"] = 2, c.config["index_head_dim"] = 32, c.config["index_topk"] = 16;
  for (int64_t i = 0; i < 3; ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".self_attn.indexer.";
    for (const auto& [name, cols] : {std::pair("wq_b.weight", 32), {"wk.weight", 64}}) {
      const int64_t rows = cols == 32 ? 64 : 32;
      fp8_block > 0 ? c.fp8(p + name, rows, cols, fp8_block, fp8_block) : c.bf16(p + name, {rows, cols});
    }
    c.bf16(p + "k_norm.weight", {32});
    c.bf16(p + "k_norm.bias", {32});
    c.bf16(p + "weights_proj.weight", {2, 64});
  }
  return c;
}

/// V1: hidden 64, 2 layers, 2 heads of 32.
inline MadeCheckpoint made_v1() {
  MadeCheckpoint c;
  c.tokenizer = "deepseek-llm";
  c.config = {{"model_type", "deepseek"},   {"vocab_size", kVocab},           {"hidden_size", 64},
              {"num_hidden_layers", 2},     {"max_position_embeddings", 512}, {"rms_norm_eps", 1e-6},
              {"num_attention_heads", 2},   {"num_key_value_heads", 2},       {"intermediate_size", 96},
              {"first_k_dense_replace", 1}, {"n_routed_experts", 4},          {"num_experts_per_tok", 2},
              {"n_shared_experts", 2},      {"moe_intermediate_size", 32},    {"norm_topk_prob", false},
              {"scoring_func", "softmax"},  {"rope_scaling", nullptr}};
  c.bf16("model.embed_tokens.weight", {kVocab, 64});
  c.bf16("model.norm.weight", {64});
  c.f16("lm_head.weight", {kVocab, 64});
  for (int64_t i = 0; i < 2; ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".";
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) c.bf16(p + norm + ".weight", {64});
    for (const char* kind : {"q", "k", "v", "o"}) c.bf16(p + "self_attn." + kind + "_proj.weight", {64, 64});
    const auto mlp = [&](const std::string& m, int64_t width) {
      c.bf16(m + "gate_proj.weight", {width, 64});
      c.f32(m + "up_proj.weight", {width, 64});
      c.bf16(m + "down_proj.weight", {64, width});
    };
    if (i == 0) {
      mlp(p + "mlp.", 96);
      continue;
    }
    c.bf16(p + "mlp.gate.weight", {4, 64});
    for (int e = 0; e < 4; ++e) mlp(p + "mlp.experts." + std::to_string(e) + ".", 32);
    mlp(p + "mlp.shared_experts.", 64);
  }
  return c;
}

/// V4 as released: experts FP4, other linears FP8 with E8M0 factors. One layer of each kind: window, 4, 128.
inline MadeCheckpoint made_v4() {
  MadeCheckpoint c;
  c.config = {{"model_type", "deepseek_v4"},
              {"vocab_size", kVocab},
              {"hidden_size", 64},
              {"num_hidden_layers", 3},
              {"num_nextn_predict_layers", 0},
              {"max_position_embeddings", 512},
              {"rms_norm_eps", 1e-6},
              {"rope_theta", 10000.0},
              {"num_attention_heads", 4},
              {"num_key_value_heads", 1},
              {"head_dim", 32},
              {"qk_rope_head_dim", 16},
              {"q_lora_rank", 32},
              {"o_groups", 2},
              {"o_lora_rank", 32},
              {"n_routed_experts", 4},
              {"num_experts_per_tok", 2},
              {"n_shared_experts", 1},
              {"moe_intermediate_size", 32},
              {"num_hash_layers", 1},
              {"sliding_window", 8},
              {"hc_mult", 4},
              {"hc_sinkhorn_iters", 20},
              {"hc_eps", 1e-6},
              {"swiglu_limit", 10.0},
              {"compress_rope_theta", 160000.0},
              {"compress_ratios", {0, 4, 128}},
              {"index_n_heads", 2},
              {"index_head_dim", 32},
              {"index_topk", 4},
              {"scoring_func", "sqrtsoftplus"},
              {"norm_topk_prob", true},
              {"routed_scaling_factor", 1.5},
              {"rope_scaling", {{"type", "yarn"}, {"factor", 16}, {"original_max_position_embeddings", 64}}},
              {"quantization_config",
               {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}, {"scale_fmt", "ue8m0"}}}};
  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols) {
    c.fp8(name, rows, cols, 128, 128, true);
  };
  c.bf16("embed.weight", {kVocab, 64});
  c.bf16("norm.weight", {64});
  c.bf16("head.weight", {kVocab, 64});
  c.f32("hc_head_fn", {4, 256});
  c.f32("hc_head_base", {4});
  c.f32("hc_head_scale", {1});
  for (int64_t i = 0; i < 3; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".", a = p + "attn.", f = p + "ffn.";
    for (const char* part : {"hc_attn_", "hc_ffn_"}) {
      c.f32(p + part + "fn", {24, 256});
      c.f32(p + part + "base", {24});
      c.f32(p + part + "scale", {3});
    }
    c.bf16(p + "attn_norm.weight", {64});
    c.bf16(p + "ffn_norm.weight", {64});
    c.f32(a + "attn_sink", {4});
    linear(a + "wq_a.weight", 32, 64);
    c.bf16(a + "q_norm.weight", {32});
    linear(a + "wq_b.weight", 128, 32);
    linear(a + "wkv.weight", 32, 64);
    c.bf16(a + "kv_norm.weight", {32});
    linear(a + "wo_a.weight", 64, 64);
    linear(a + "wo_b.weight", 64, 64);
    const auto compressor = [&](const std::string& q, int64_t ratio) {
      const int64_t width = ratio == 4 ? 64 : 32;
      c.f32(q + "ape", {ratio, width});
      c.bf16(q + "wkv.weight", {width, 64});
      c.bf16(q + "wgate.weight", {width, 64});
      c.bf16(q + "norm.weight", {32});
    };
    if (i > 0) compressor(a + "compressor.", i == 1 ? 4 : 128);
    if (i == 1) {
      linear(a + "indexer.wq_b.weight", 64, 32);
      c.bf16(a + "indexer.weights_proj.weight", {2, 64});
      compressor(a + "indexer.compressor.", 4);
    }
    c.bf16(f + "gate.weight", {4, 64});
    if (i == 0) {
      MadeTensor table{SafetensorsType::kI64, {kVocab, 2}, "", {}};
      for (int64_t id = 0; id < kVocab * 2; ++id) {
        const int64_t expert = id * 7 % 4;
        table.meant.push_back(static_cast<float>(expert));
        table.bytes.append(reinterpret_cast<const char*>(&expert), sizeof expert);
      }
      c.tensors[f + "gate.tid2eid"] = std::move(table);
    } else {
      c.f32(f + "gate.bias", {4});
    }
    for (int e = 0; e < 4; ++e) {
      const std::string x = f + "experts." + std::to_string(e) + ".";
      c.fp4(x + "w1.weight", 32, 64);
      c.fp4(x + "w3.weight", 32, 64);
      c.fp4(x + "w2.weight", 64, 32);
    }
    for (const char* w : {"w1", "w3"}) linear(f + "shared_experts." + w + ".weight", 32, 64);
    linear(f + "shared_experts.w2.weight", 64, 32);
  }
  return c;
}

}  // namespace fathom
