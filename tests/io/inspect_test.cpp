#include "io/inspect.h"

#include "core/printable.h"
#include "gguf_bytes.h"
#include "io/gguf_writer.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

const std::string kModels = std::string(FATHOM_FIXTURES) + "/models/";

TEST_CASE("a split model is reported as one") {
  const InspectReport r = inspect_model(kModels + "v2lite/v2lite-q4_k_m-mla-00002-of-00003.gguf");
  CHECK(r.architecture == "deepseek2");
  CHECK(r.type == "q4_k_m");
  CHECK(r.files.size() == 3);
  CHECK(r.tensors.size() == 44);
  CHECK(r.n_tokens == 640);
  CHECK(r.types.front().type == "q4_k");
  uint64_t n_tensors = 0;
  uint64_t n_bytes = 0;
  for (const auto& t : r.types) {
    n_tensors += t.n_tensors;
    n_bytes += t.size_bytes;
  }
  CHECK(n_tensors == 44);
  CHECK(n_bytes < r.size_bytes);
  CHECK(n_bytes > r.size_bytes * 9 / 10);

  const nlohmann::json json = nlohmann::json::parse(inspect_json_text(r, true));
  CHECK(json["configuration"]["deepseek2.block_count"] == 3);
  CHECK(json["configuration"]["deepseek2.attention.layer_norm_rms_epsilon"] == 1e-6);
  CHECK(json["configuration"]["tokenizer.ggml.token_type"]["count"] == 640);
  CHECK(json["tokenizer"]["special"]["bos"]["id"] == 600);
  CHECK(json["tokenizer"]["pre"] == "deepseek-llm");
  CHECK(json["chat_template"].is_string());
  CHECK(json["tensors"].size() == 44);
  CHECK(json["tensors"][0]["shape"] == nlohmann::json({640, 256}));
  CHECK_FALSE(nlohmann::json::parse(inspect_json_text(r, false)).contains("tensors"));

  const std::string text = inspect_text(r, false);
  CHECK(contains(text, "deepseek2.expert_count"));
  CHECK_FALSE(contains(text, "blk.0.attn_q.weight"));
  CHECK(contains(inspect_text(r, true), "blk.0.attn_q.weight"));
}

TEST_CASE("a file of metadata alone is enough, a file cut among its data is refused") {
  const TempFolder folder;
  const std::string whole = read_bytes(kModels + "v3/v3-q4_k_m.gguf");
  const uint64_t data_offset = read_gguf_file(kModels + "v3/v3-q4_k_m.gguf", true).data_offset;
  const InspectReport r = inspect_model(folder.write("head.gguf", std::string_view(whole).substr(0, data_offset)));
  CHECK(r.tensors.size() == 49);
  CHECK(r.type == "q4_k_m");
  CHECK_THROWS_AS(inspect_model(folder.write("cut.gguf", std::string_view(whole).substr(0, whole.size() / 2))), Error);
}

TEST_CASE("texts of the file cannot steer the terminal or break JSON") {
  const TempFolder folder;
  GgufWriter writer(folder / "m.gguf");
  writer.set_text("general.name", "x\x1b[2J\n\xff\xe2\x80\xae");
  writer.begin();
  writer.finish();
  const InspectReport r = inspect_model(folder / "m.gguf");
  const std::string text = inspect_text(r, true);
  CHECK(contains(text, "x\\x1b[2J\\n\\xff\\u{202e}"));
  CHECK_FALSE(contains(text, "\x1b"));
  CHECK(nlohmann::json::parse(inspect_json_text(r, true))["name"].get<std::string>().starts_with(
      "x\x1b[2J\n\xef\xbf\xbd"));
}

TEST_CASE("a Hugging Face folder is reported with its config") {
  const TempFolder folder;
  const uint16_t data[6] = {};
  write_safetensors(folder / "model.safetensors", {{"w", SafetensorsType::kBF16, {2, 3}, data}});
  folder.write("config.json",
               R"({"model_type":"deepseek_v3","hidden_size":7,"rope_scaling":{"factor":40},"architectures":["X"]})");
  folder.write("tokenizer.json", "{}");
  folder.write("tokenizer_config.json", R"({"chat_template":"{{x}}"})");
  const InspectReport r = inspect_model(folder / "");
  CHECK(r.architecture == "deepseek_v3");
  CHECK(r.type == "bf16");
  CHECK(r.n_parameters == 6);
  CHECK(r.configuration["hidden_size"] == 7);
  CHECK(r.configuration["rope_scaling.factor"] == 40);
  CHECK(r.configuration["architectures"]["count"] == 1);
  CHECK(r.chat_template == "{{x}}");
  CHECK(contains(inspect_text(r, true), "[2, 3]"));
  for (const char* config : {"", "[]", "{", "1"}) {
    folder.write("config.json", config);
    CHECK_THROWS_AS(inspect_model(folder / ""), Error);
  }
}

TEST_CASE("printable escapes what is not text and cuts at a border") {
  CHECK(printable("a｜b") == "a｜b");
  CHECK(printable("a\t\n\\\x7f") == "a\\t\\n\\\\\\x7f");
  CHECK(printable("\xc0\xaf\xed\xa0\x80\xf5") == "\\xc0\\xaf\\xed\\xa0\\x80\\xf5");
  CHECK(printable("\xe2\x80") == "\\xe2\\x80");
  CHECK(printable("\xc2\x9b") == "\\u{009b}");
  CHECK(printable("aa｜", 3) == "aa...");
  CHECK(printable("aaa", 3) == "aaa");
}

}  // namespace
}  // namespace fathom
