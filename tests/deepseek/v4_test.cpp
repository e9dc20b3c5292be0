// V4's configuration and tensors: names seen in the wild, and what is refused.
#include "changed_file.h"

using namespace fathom;
using namespace fathom::deepseek;

namespace {

const GgufModel& file() {
  static const GgufModel model = GgufModel::open(FATHOM_FIXTURES "/models/v4/v4-mxfp4.gguf");
  return model;
}

std::string refusal(const testing::Change& change) { return testing::refusal(file(), false, change); }

void rename_all(std::map<std::string, Tensor>& tensors, const std::string& from, const std::string& to) {
  std::map<std::string, Tensor> renamed;
  bool found = false;
  for (const auto& [name, tensor] : tensors) {
    std::string key = name;
    if (const size_t at = key.find(from); at != std::string::npos) key.replace(at, from.size(), to), found = true;
    renamed.emplace(key, tensor);
  }
  REQUIRE(found);
  tensors = std::move(renamed);
}

}  // namespace

TEST_CASE("V4's numbers are those of the file") {
  const Config c = read_config(file().metadata(), false, true);
  REQUIRE(c.v4.has_value());
  CHECK(c.attention == Attention::kCompressed);
  CHECK(c.v4->compress_ratios == std::vector<int64_t>{0, 4, 128, 4});
  CHECK(c.v4->compress_rope.base == doctest::Approx(160000));
  CHECK(c.v4->compress_rope.factor == doctest::Approx(16));
  CHECK_FALSE(c.rope.is_yarn);
  CHECK(c.router.score == RouterScore::kSqrtSoftplus);
  CHECK(c.v4->swiglu_clamp == std::vector<float>(4, 2.5F));
  CHECK(c.recent_tokens() == 127);
  // A window, then pending inputs and rows of a compressor, then the same of the index.
  const std::vector<CacheRows> rows = c.cache_rows();
  CHECK(rows.size() == 1 + 5 + 3 + 5);
  CHECK(rows[2].is_exact);
  CHECK(rows[2].elements == 2 * 2 * 64);
  CHECK(rows[3].tokens_per_row == 4);
  CHECK(rows[7].elements == 2 * 64);
  CHECK(rows[8].tokens_per_row == 128);
  CHECK_FALSE(c.chooses_at(34));
  CHECK(c.chooses_at(35));  // the ninth row of four tokens
}

TEST_CASE("other names and forms of the same values are read") {
  using Tensors = std::map<std::string, Tensor>;
  CHECK(refusal([](Metadata&, Tensors& t) { rename_all(t, "attn_kv.weight", "attn_kv_latent.weight"); }) == "");
  CHECK(refusal([](Metadata&, Tensors& t) { rename_all(t, "attn_compressor_", "attn_compress_"); }) == "");
  CHECK(refusal([](Metadata&, Tensors& t) { rename_all(t, "indexer_compressor_", "indexer.compress_"); }) == "");
  CHECK(refusal([](Metadata&, Tensors& t) { rename_all(t, "output_hc_", "hc_head_"); }) == "");
  Metadata one = file().metadata();
  one.set("deepseek4.swiglu_clamp_exp", 10.0);
  one.set("deepseek4.swiglu_clamp_shexp", 0.0);
  const Config c = read_config(one, false, true);
  CHECK(c.v4->swiglu_clamp == std::vector<float>(4, 10.0F));
  CHECK(c.v4->shared_swiglu_clamp == std::vector<float>(4, kNoClamp));
}

TEST_CASE("values and tensors that do not fit V4 are refused by name") {
  using Tensors = std::map<std::string, Tensor>;
  const auto with = [](const std::string& key, const MetadataValue& value) {
    return refusal([&](Metadata& m, Tensors&) { m.set("deepseek4." + key, value); });
  };
  CHECK(with("attention.compress_ratios", std::vector<int64_t>{0, 4, 8, 4}).find("expected 0, 4 or 128, got 8") !=
        std::string::npos);
  CHECK(with("attention.compress_ratios", std::vector<int64_t>{0, 4}).find("compress_ratios") != std::string::npos);
  CHECK(with("attention.head_count_kv", int64_t{2}).find("head_count_kv") != std::string::npos);
  CHECK(with("attention.output_group_count", int64_t{3}).find("output_group_count") != std::string::npos);
  CHECK(with("attention.value_length", int64_t{32}).find("value_length") != std::string::npos);
  CHECK(with("rope.dimension_count", int64_t{66}).find("rope.dimension_count") != std::string::npos);
  CHECK(with("hyper_connection.count", int64_t{17}).find("hyper_connection.count") != std::string::npos);
  CHECK(with("swiglu_clamp_exp", std::vector<double>{-1, 1, 1, 1}).find("swiglu_clamp_exp") != std::string::npos);
  CHECK(with("leading_dense_block_count", int64_t{1}).find("feed_forward_length") != std::string::npos);
  CHECK(refusal([](Metadata&, Tensors& t) {
          t.erase("blk.2.attn_compressor_ape.weight");
        }).find("blk.2.attn_compressor_ape.weight") != std::string::npos);
  CHECK(refusal([](Metadata&, Tensors& t) {
          t["blk.1.indexer.proj.weight"] = t["blk.1.ffn_gate_shexp.weight"];
        }).find("blk.1.indexer.proj.weight") != std::string::npos);
  CHECK(refusal([](Metadata&, Tensors& t) {
          t["blk.0.ffn_gate_tid2eid.weight"].dtype = DType::kF32;
        }).find("wrong type; expected i32") != std::string::npos);
  std::vector<int32_t> table(640 * 3, 7);
  table[1000] = 8;
  CHECK(refusal([&](Metadata&, Tensors& t) {
          t["blk.0.ffn_gate_tid2eid.weight"] = Tensor(DType::kI32, {640, 3}, table.data());
        }).find("expected 0 to 7, got 8") != std::string::npos);
}
