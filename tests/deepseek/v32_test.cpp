// V3.2's configuration and tensors: what is read, and what is refused.
#include "changed_file.h"

using namespace fathom;
using namespace fathom::deepseek;

namespace {

const GgufModel& file() {
  static const GgufModel model = GgufModel::open(FATHOM_FIXTURES "/models/v32/v32-bf16.gguf");
  return model;
}

std::string refusal(const testing::Change& change) { return testing::refusal(file(), true, change); }

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("V3.2's numbers are those of the file, its index keys lie behind the layers' rows in the cache") {
  const Config c = read_config(file().metadata(), true, true);
  CHECK(c.attention == Attention::kLatent);
  CHECK(c.n_layers == 3);
  CHECK(c.n_mtp_layers == 1);
  CHECK(c.has_indexer());
  CHECK(c.index_n_heads == 8);
  CHECK(c.index_head_dim == 64);
  CHECK(c.index_topk == 32);
  std::vector<int64_t> elements;
  for (const CacheRows& rows : c.cache_rows()) elements.push_back(rows.elements);
  CHECK(elements == std::vector<int64_t>{80, 80, 80, 64, 64, 64});
}

TEST_CASE("V3.2: the MTP block is counted among the blocks, with its tensors or without") {
  Metadata metadata = file().metadata();
  CHECK(read_config(metadata, false, true).n_layers == 3);
  metadata.set("deepseek32.nextn_predict_layers", int64_t{0});
  CHECK(read_config(metadata, false, true).n_layers == 4);
}

TEST_CASE("V3.2: a file without what the indexer needs is refused by name") {
  CHECK(refusal([](Metadata&, auto&) {}).empty());
  for (const char* name : {"attn_q_b.weight", "attn_k.weight", "k_norm.weight", "k_norm.bias", "proj.weight"}) {
    const std::string tensor = std::string("blk.1.indexer.") + name;
    CHECK(has(refusal([&](Metadata&, auto& tensors) { tensors.erase(tensor); }), tensor));
  }
  CHECK(has(refusal([](Metadata&, auto& tensors) {
              Tensor& t = tensors.at("blk.2.indexer.attn_k.weight");
              t = t.slice(0, 63);
            }),
            "blk.2.indexer.attn_k.weight"));
  CHECK(has(refusal([](Metadata& m, auto&) { m.set("deepseek32.attention.indexer.top_k", int64_t{0}); }),
            "attention.indexer.top_k"));
  CHECK(has(refusal([](Metadata& m, auto&) { m.set("deepseek32.attention.indexer.key_length", int64_t{8}); }),
            "attention.indexer.key_length"));
  CHECK(has(refusal([](Metadata& m, auto&) { m.set("deepseek32.attention.q_lora_rank", int64_t{0}); }),
            "attention.q_lora_rank"));
}

TEST_CASE("V3.2: a step of tokens that may see everything has no choice in its graph, one that goes beyond it has") {
  const Config config = read_config(file().metadata(), true, true);
  const Model model{config, bind_weights(config, file().tensors())};
  for (const bool selects : {false, true}) {
    const auto ints = [](Shape shape) { return Tensor(DType::kI32, shape, nullptr); };
    Step step{ints({2}), {ints({2}), ints({2}), ints({2}), ints({1, 2})}, ints({1}), {}};
    for (const CacheRows& rows : config.cache_rows())
      step.caches.emplace_back(DType::kF32, Shape{2, 64, rows.elements}, nullptr);
    step.selects = selects;
    Graph g;
    forward(g, model, step);
    int64_t n_chosen = 0, n_stored = 0;
    for (const Node& node : g.nodes()) {
      n_chosen += op_name(node) == "index_rows" ? 1 : 0;
      n_stored += op_name(node) == "store_rows" ? 1 : 0;
    }
    CHECK(n_chosen == (selects ? 3 : 0));
    CHECK(n_stored == 3);
  }
}
