#include "convert/convert.h"

#include <algorithm>
#include <optional>

#include "checkpoint_fixture.h"
#include "core/quant/dequantize.h"
#include "io/gguf.h"

using namespace fathom;

namespace {

std::vector<float> floats_of(const GgufModel& model, const std::string& name) {
  const Tensor* t = model.find(name);
  REQUIRE_MESSAGE(t != nullptr, name);
  std::vector<float> out(static_cast<size_t>(t->shape.n_elements()));
  dequantize_row(t->dtype, t->data, out.data(), static_cast<int64_t>(out.size()));
  return out;
}

/// The experts of a layer one after the other.
std::vector<float> stacked(const MadeCheckpoint& c, const std::string& before, const std::string& after, int n = 4) {
  std::vector<float> out;
  for (int e = 0; e < n; ++e) {
    const std::vector<float>& one = c.tensors.at(before + std::to_string(e) + after).meant;
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

WriteReport convert(const MadeCheckpoint& c, const TempFolder& folder, const std::string& type, ConvertOptions o = {},
                    size_t n_files = 1) {
  c.save(folder / "hf", n_files);
  o.folder = folder / "hf";
  o.out = folder / "out.gguf";
  o.type = type;
  o.n_threads = 2;
  return convert_checkpoint(o);
}

/// What conversion refuses, or nothing.
std::optional<std::string> refusal(const std::function<void()>& act, ErrorCode code = ErrorCode::kModel) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return std::nullopt;
}

void check_refused(const MadeCheckpoint& c, const std::string& part) {
  CAPTURE(part);
  const TempFolder folder;
  const auto message = refusal([&] { convert(c, folder, "f32"); });
  REQUIRE(message.has_value());
  CAPTURE(*message);
  CHECK(message->find(part) != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(folder / "out.gguf"));
}

}  // namespace

TEST_CASE("a V3 checkpoint becomes the tensors and keys that llama.cpp's converter makes") {
  const MadeCheckpoint c = made_v3();
  const TempFolder folder;
  convert(c, folder, "f32", {}, 3);
  const GgufModel m = GgufModel::open(folder / "out.gguf");
  const auto same = [&](const std::string& to, const std::string& from) {
    CHECK_MESSAGE(floats_of(m, to) == c.tensors.at(from).meant, to);
  };
  same("token_embd.weight", "model.embed_tokens.weight");
  same("output.weight", "lm_head.weight");
  same("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight");
  same("blk.1.exp_probs_b.bias", "model.layers.1.mlp.gate.e_score_correction_bias");
  same("blk.1.ffn_up_shexp.weight", "model.layers.1.mlp.shared_experts.up_proj.weight");
  same("blk.2.nextn.eh_proj.weight", "model.layers.2.eh_proj.weight");
  same("blk.2.nextn.shared_head_norm.weight", "model.layers.2.shared_head.norm.weight");
  CHECK(floats_of(m, "blk.1.ffn_gate_exps.weight") == stacked(c, "model.layers.1.mlp.experts.", ".gate_proj.weight"));
  CHECK(m.find("blk.1.ffn_down_exps.weight")->shape == Shape{4, 64, 32});

  // kv_b [2 heads x (32 keys + 16 values), 32]: keys transposed by head, values as they are.
  const std::vector<float>& kv_b = c.tensors.at("model.layers.1.self_attn.kv_b_proj.weight").meant;
  const std::vector<float> k_b = floats_of(m, "blk.1.attn_k_b.weight"), v_b = floats_of(m, "blk.1.attn_v_b.weight");
  CHECK(m.find("blk.1.attn_k_b.weight")->shape == Shape{2, 32, 32});
  CHECK(m.find("blk.1.attn_v_b.weight")->shape == Shape{2, 16, 32});
  bool keys_agree = true, values_agree = true;
  for (size_t h = 0; h < 2; ++h) {
    for (size_t latent = 0; latent < 32; ++latent) {
      for (size_t i = 0; i < 32; ++i) keys_agree &= k_b[(h * 32 + latent) * 32 + i] == kv_b[(h * 48 + i) * 32 + latent];
      for (size_t i = 0; i < 16; ++i)
        values_agree &= v_b[(h * 16 + i) * 32 + latent] == kv_b[(h * 48 + 32 + i) * 32 + latent];
    }
  }
  CHECK(keys_agree);
  CHECK(values_agree);

  const Metadata& k = m.metadata();
  CHECK(*k.text("general.architecture") == "deepseek2");
  CHECK(k.integer("deepseek2.block_count") == 3);
  CHECK(k.integer("deepseek2.nextn_predict_layers") == 1);
  CHECK(k.integer("deepseek2.attention.head_count_kv") == 1);
  CHECK(k.integer("deepseek2.attention.key_length") == 48);
  CHECK(k.integer("deepseek2.attention.value_length") == 32);
  CHECK(k.integer("deepseek2.attention.key_length_mla") == 48);
  CHECK(k.integer("deepseek2.attention.value_length_mla") == 16);
  CHECK(k.integer("deepseek2.expert_gating_func") == 2);
  CHECK(k.number("deepseek2.rope.scaling.yarn_log_multiplier") == static_cast<double>(0.1F));
  CHECK(k.boolean("deepseek2.expert_weights_norm") == true);
  CHECK(*k.text("tokenizer.ggml.pre") == "deepseek-v3");
  CHECK(k.texts("tokenizer.ggml.tokens")->size() == kVocab);
  CHECK(k.integer("general.file_type") == 0);
}

TEST_CASE("the MTP layer and the split of kv_b can be left out") {
  const MadeCheckpoint c = made_v3();
  const TempFolder folder;
  ConvertOptions o;
  o.mtp = MtpChoice::kLeaveOut;
  o.splits_kv_b = false;
  convert(c, folder, "f32", o);
  const GgufModel m = GgufModel::open(folder / "out.gguf");
  CHECK(m.metadata().integer("deepseek2.block_count") == 2);
  CHECK(m.metadata().integer("deepseek2.attention.head_count_kv") == 2);
  CHECK_FALSE(m.metadata().has("deepseek2.attention.key_length_mla"));
  CHECK(m.find("blk.2.attn_norm.weight") == nullptr);
  CHECK(floats_of(m, "blk.1.attn_kv_b.weight") == c.tensors.at("model.layers.1.self_attn.kv_b_proj.weight").meant);
}

TEST_CASE("a checkpoint whose MTP layer was stripped converts without it") {
  MadeCheckpoint c = made_v3();
  std::erase_if(c.tensors, [](const auto& t) { return t.first.starts_with("model.layers.2."); });
  const TempFolder folder;
  const WriteReport report = convert(c, folder, "f32");
  CHECK(GgufModel::open(folder / "out.gguf").metadata().integer("deepseek2.block_count") == 2);
  CHECK(report.notes.size() == 1);
}

TEST_CASE("FP8 weights are multiplied by the factor of their block, whatever size config.json gives blocks") {
  for (const int64_t block : {128, 32, 24}) {
    CAPTURE(block);
    const MadeCheckpoint c = made_v3(block);
    const TempFolder folder;
    convert(c, folder, "f32");
    const GgufModel m = GgufModel::open(folder / "out.gguf");
    CHECK(floats_of(m, "blk.0.attn_q_b.weight") == c.tensors.at("model.layers.0.self_attn.q_b_proj.weight").meant);
    CHECK(floats_of(m, "blk.0.ffn_gate.weight") == c.tensors.at("model.layers.0.mlp.gate_proj.weight").meant);
    CHECK(floats_of(m, "blk.1.ffn_down_exps.weight") == stacked(c, "model.layers.1.mlp.experts.", ".down_proj.weight"));
  }
}

TEST_CASE("V1's q and k rows are paired as GGUF rotates them, mixed types of source are one") {
  const MadeCheckpoint c = made_v1();
  const TempFolder folder;
  convert(c, folder, "f16");
  const GgufModel m = GgufModel::open(folder / "out.gguf");
  const std::vector<float>& q = c.tensors.at("model.layers.1.self_attn.q_proj.weight").meant;
  const std::vector<float> got = floats_of(m, "blk.1.attn_q.weight");
  bool agrees = true;
  for (size_t h = 0; h < 2; ++h) {
    for (size_t i = 0; i < 16; ++i) {
      for (size_t half = 0; half < 2; ++half) {
        for (size_t j = 0; j < 64; ++j)
          agrees &= got[(h * 32 + 2 * i + half) * 64 + j] == q[(h * 32 + half * 16 + i) * 64 + j];
      }
    }
  }
  CHECK(agrees);
  CHECK(floats_of(m, "blk.1.attn_v.weight") == c.tensors.at("model.layers.1.self_attn.v_proj.weight").meant);
  CHECK(floats_of(m, "blk.1.ffn_up_exps.weight") == stacked(c, "model.layers.1.mlp.experts.", ".up_proj.weight"));
  CHECK(m.find("blk.1.ffn_gate_inp.weight")->dtype == DType::kF32);
  CHECK(*m.metadata().text("tokenizer.ggml.pre") == "deepseek-llm");
  CHECK(*m.metadata().text("deepseek.rope.scaling.type") == "none");
}

TEST_CASE("V4: experts stored as FP4 become MXFP4 bit for bit, the table of experts I32") {
  const MadeCheckpoint c = made_v4();
  for (const std::string type : {"f32", "q8_0", "mxfp4", "q4_k_m", "q2_k"}) {
    CAPTURE(type);
    const TempFolder folder;
    convert(c, folder, type);
    const GgufModel m = GgufModel::open(folder / "out.gguf");
    const DType experts = m.find("blk.1.ffn_down_exps.weight")->dtype;
    CHECK(experts == (type == "f32" ? DType::kF32 : type == "q2_k" ? DType::kIQ4_NL : DType::kMXFP4));
    if (experts == DType::kF32 || experts == DType::kMXFP4) {
      CHECK(floats_of(m, "blk.1.ffn_down_exps.weight") == stacked(c, "layers.1.ffn.experts.", ".w2.weight"));
      CHECK(floats_of(m, "blk.2.ffn_up_exps.weight") == stacked(c, "layers.2.ffn.experts.", ".w3.weight"));
    }
    if (type == "f32")
      CHECK(floats_of(m, "blk.0.attn_output_a.weight") == c.tensors.at("layers.0.attn.wo_a.weight").meant);
    const Tensor* table = m.find("blk.0.ffn_gate_tid2eid.weight");
    REQUIRE(table != nullptr);
    CHECK(table->dtype == DType::kI32);
    const std::vector<float>& meant = c.tensors.at("layers.0.ffn.gate.tid2eid").meant;
    CHECK(std::equal(meant.begin(), meant.end(), table->as<int32_t>(),
                     [](float a, int32_t b) { return static_cast<int32_t>(a) == b; }));
    CHECK(m.find("blk.0.hc_attn_fn.weight")->dtype == DType::kF32);
  }
  const TempFolder folder;
  convert(c, folder, "bf16");
  const Metadata k = GgufModel::open(folder / "out.gguf").metadata();
  CHECK(*k.text("tokenizer.ggml.pre") == "joyai-llm");
  CHECK(*k.integers("deepseek4.attention.compress_ratios") == std::vector<int64_t>{0, 4, 128});
  CHECK(k.numbers("deepseek4.swiglu_clamp_exp")->size() == 3);
}

TEST_CASE("V3.2 and V4 get a chat template where the checkpoint has none, and keep one that it has") {
  struct Case {
    MadeCheckpoint checkpoint;
    const char* says;
  };
  for (const Case& c : {Case{made_v32(), "function_calls"}, Case{made_v4(), "tool_calls"}}) {
    const TempFolder folder;
    convert(c.checkpoint, folder, "f32");
    const GgufModel model = GgufModel::open(folder / "out.gguf");
    const std::string* text = model.metadata().text("tokenizer.chat_template");
    REQUIRE(text != nullptr);
    CHECK(text->find(c.says) != std::string::npos);
  }
  const TempFolder folder;
  made_v4().save(folder / "hf");
  write_bytes(folder / "hf/chat_template.jinja", "{{ messages }}");
  ConvertOptions o;
  o.folder = folder / "hf";
  o.out = folder / "out.gguf";
  o.type = "f32";
  convert_checkpoint(o);
  CHECK(*GgufModel::open(o.out).metadata().text("tokenizer.chat_template") == "{{ messages }}");
}

TEST_CASE("a damaged or foreign configuration is refused with the field's name") {
  const auto with = [](const std::string& field, const nlohmann::json& value) {
    MadeCheckpoint c = made_v3(32);
    if (value == "absent") {
      c.config.erase(field);
    } else {
      c.config[field] = value;
    }
    return c;
  };
  check_refused(with("model_type", "llama"), "another family");
  check_refused(with("hidden_size", "64"), "'hidden_size'");
  check_refused(with("hidden_size", -1), "'hidden_size'");
  check_refused(with("hidden_size", 64.5), "'hidden_size'");
  check_refused(with("num_hidden_layers", "absent"), "'num_hidden_layers'");
  check_refused(with("num_hidden_layers", 1u << 30), "'num_hidden_layers'");
  check_refused(with("rope_scaling", "yarn"), "'rope_scaling'");
  check_refused(with("rope_scaling", {{"type", "dynamic"}, {"factor", 2}}), "'rope_scaling.type'");
  check_refused(with("n_routed_experts", 0), "'n_routed_experts'");
  check_refused(with("num_experts_per_tok", 5), "'num_experts_per_tok'");
  check_refused(with("scoring_func", "tanh"), "'scoring_func'");
  check_refused(with("quantization_config", {{"quant_method", "awq"}}), "'quantization_config.quant_method'");
  check_refused(with("quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128}}}),
                "weight_block_size");
  check_refused(with("quantization_config", {{"quant_method", "fp8"}}), "weight_block_size");
  check_refused(with("tie_word_embeddings", 3), "'tie_word_embeddings'");
}

TEST_CASE("FP8 factors that do not fit the block size are refused, not misread") {
  MadeCheckpoint c = made_v3(32);
  c.config["quantization_config"]["weight_block_size"] = {64, 64};
  check_refused(c, "weight_scale_inv' does not fit blocks of 64 x 64");
}

TEST_CASE("missing, unknown and misshapen tensors are refused by name") {
  MadeCheckpoint c = made_v3();
  c.tensors.erase("model.layers.1.mlp.experts.3.up_proj.weight");
  check_refused(c, "'model.layers.1.mlp.experts.3.up_proj.weight'");
  c = made_v3();
  c.bf16("model.layers.0.self_attn.o_proj.bias", {64});
  check_refused(c, "'model.layers.0.self_attn.o_proj.bias' has no place");
  c = made_v3();
  c.bf16("model.layers.0.self_attn.o_proj.weight", {32, 64});
  check_refused(c, "expected [64, 32], got [32, 64]");
  c = made_v3(128);
  c.tensors.erase("model.layers.0.self_attn.o_proj.weight_scale_inv");
  check_refused(c, "has no factors");
  c = made_v3();
  c.tensors["model.norm.weight"].type = SafetensorsType::kI16;
  check_refused(c, "'model.norm.weight' has a type");
  c = made_v4();
  c.tensors["layers.0.ffn.gate.tid2eid"].bytes[8 * 5] = 9;  // an expert that is not there
  check_refused(c, "tid2eid");
}

TEST_CASE("a shard that is missing and an index that is wrong are refused with the file's name") {
  const TempFolder folder;
  made_v3().save(folder / "hf", 2);
  ConvertOptions o;
  o.folder = folder / "hf";
  o.out = folder / "out.gguf";
  o.type = "f32";
  const std::string second = folder / "hf/model-00002-of-000002.safetensors", bytes = read_bytes(second);
  std::filesystem::remove(second);
  CHECK(refusal([&] { convert_checkpoint(o); }).value_or("").find("model-00002-of-000002") != std::string::npos);
  write_bytes(second, bytes.substr(0, bytes.size() - 1));
  CHECK(refusal([&] { convert_checkpoint(o); }).value_or("").find("does not lie in the file") != std::string::npos);
  write_bytes(second, bytes);
  nlohmann::json index = nlohmann::json::parse(read_bytes(folder / "hf/model.safetensors.index.json"));
  index["weight_map"]["lm_head.weight"] = index["weight_map"]["lm_head.weight"] == "model-00001-of-000002.safetensors"
                                              ? "model-00002-of-000002.safetensors"
                                              : "model-00001-of-000002.safetensors";
  write_bytes(folder / "hf/model.safetensors.index.json", index.dump());
  CHECK(refusal([&] { convert_checkpoint(o); }).value_or("").find("the index is wrong") != std::string::npos);
  std::filesystem::remove(folder / "hf/tokenizer.json");
  write_bytes(folder / "hf/model.safetensors.index.json", "[");
  CHECK(refusal([&] { convert_checkpoint(o); }).has_value());
  o.folder = folder / "nowhere";
  CHECK(refusal([&] { convert_checkpoint(o); }).value_or("").find("no such folder") != std::string::npos);
}

TEST_CASE("NaN in a weight is refused with the tensor's name and row") {
  MadeCheckpoint c = made_v3();
  std::string& bytes = c.tensors["model.layers.1.mlp.experts.2.gate_proj.weight"].bytes;
  bytes[5 * 64 * 2] = '\xC0', bytes[5 * 64 * 2 + 1] = '\x7F';
  const TempFolder folder;
  const std::string message = refusal([&] { convert(c, folder, "q8_0"); }).value_or("");
  CHECK(message.find("'blk.1.ffn_gate_exps.weight', row 69") != std::string::npos);
}

TEST_CASE("an interrupted conversion goes on where it stopped and gives the same bytes") {
  const MadeCheckpoint c = made_v3(128);
  const TempFolder whole, folder;
  convert(c, whole, "q8_0");
  ConvertOptions o;
  int n_asked = 0;
  o.stop = [&] { return ++n_asked > 12; };
  CHECK(refusal([&] { convert(c, folder, "q8_0", o); }, ErrorCode::kInterrupted).has_value());
  CHECK_FALSE(std::filesystem::exists(folder / "out.gguf"));
  CHECK(std::filesystem::exists(folder / "out.gguf.part"));
  o = {};
  o.folder = folder / "hf";
  o.out = folder / "out.gguf";
  o.type = "q8_0";
  o.name = "hf";
  const WriteReport report = convert_checkpoint(o);
  CHECK(report.resumed_bytes > 0);
  CHECK(read_bytes(folder / "out.gguf") == read_bytes(whole / "out.gguf"));
  CHECK_FALSE(std::filesystem::exists(folder / "out.gguf.part"));
  CHECK_FALSE(std::filesystem::exists(folder / "out.gguf.journal"));
}

TEST_CASE("another source or type does not go on with a part that was left") {
  const MadeCheckpoint c = made_v3();
  const TempFolder folder;
  ConvertOptions o;
  int n_asked = 0;
  o.stop = [&] { return ++n_asked > 12; };
  CHECK(refusal([&] { convert(c, folder, "q8_0", o); }, ErrorCode::kInterrupted).has_value());
  const WriteReport report = convert(c, folder, "f16");
  CHECK(report.resumed_bytes == 0);
  CHECK(floats_of(GgufModel::open(folder / "out.gguf"), "output.weight") == c.tensors.at("lm_head.weight").meant);
}

TEST_CASE("shards of a limited size hold the same tensors, resumed or not") {
  const MadeCheckpoint c = made_v3();
  const TempFolder whole, folder;
  convert(c, whole, "bf16");
  ConvertOptions o;
  o.split_max_bytes = 300000;
  int n_asked = 0;
  o.stop = [&] { return ++n_asked > 20; };
  CHECK(refusal([&] { convert(c, folder, "bf16", o); }, ErrorCode::kInterrupted).has_value());
  o.stop = nullptr;
  o.folder = folder / "hf";
  o.out = folder / "out.gguf";
  o.type = "bf16";
  const WriteReport report = convert_checkpoint(o);
  CHECK(report.paths.size() > 2);
  CHECK(report.resumed_bytes > 0);
  const GgufModel a = GgufModel::open(whole / "out.gguf"), b = GgufModel::open(report.paths.front());
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (const auto& [name, t] : a.tensors()) {
    CAPTURE(name);
    CHECK(std::memcmp(t.data, b.find(name)->data, t.size_bytes()) == 0);
  }
}

TEST_CASE("the number of threads does not change a byte") {
  const MadeCheckpoint c = made_v3(128);
  const TempFolder folder;
  c.save(folder / "hf");
  ConvertOptions o;
  o.folder = folder / "hf";
  o.type = "q4_k_m";
  std::vector<std::string> results;
  for (const int n : {1, 3}) {
    o.out = folder / "out.gguf";
    o.n_threads = n;
    convert_checkpoint(o);
    results.push_back(read_bytes(o.out));
  }
  CHECK(results[0] == results[1]);
}
