#include "engine/importance.h"

#include <cmath>
#include <functional>

#include "../convert/checkpoint_fixture.h"
#include "convert/convert.h"
#include "convert/prune.h"
#include "core/quant/dequantize.h"
#include "deepseek/config.h"
#include "engine_fixture.h"
#include "io/gguf.h"

using namespace fathom;
using fathom::testing::random_prompt;

namespace {

const char* const kLegacy = "v3/v3-q4_k_m.gguf";    // attn_kv_b, groups, selection bias
const char* const kSplit = "v3/v3-mxfp4-mla.gguf";  // attn_k_b, attn_v_b
const char* const kGreedy = "v2lite/v2lite-iq4_xs-old.gguf";

std::unique_ptr<Engine> reference_engine(const std::string& file) {
  EngineOptions o = fathom::testing::small_engine_options(file);
  o.isa = "reference";
  o.cache_type = DType::kF32;
  return Engine::load(o);
}

std::vector<float> logits_of(Engine& engine, const std::vector<int32_t>& ids) {
  Sequence sequence(engine.pool());
  const StepPart part{&sequence, ids, Outputs::kAll};
  REQUIRE(engine.step({&part, 1}) == StepStatus::kDone);
  std::vector<float> out;
  for (int64_t i = 0; i < engine.n_outputs(); ++i)
    out.insert(out.end(), engine.logits(i).begin(), engine.logits(i).end());
  return out;
}

/// Keeps every row.
class Recorder final : public WeightObserver {
 public:
  void inputs(const MatrixInputs& seen) override {
    std::vector<float>& all = rows[seen.tensor + "#" + std::to_string(seen.matrix)];
    for (int64_t r = 0; r < seen.n_rows; ++r) all.insert(all.end(), seen.row(r), seen.row(r) + seen.width);
    n_rows[seen.tensor] += seen.n_rows;
    CHECK(seen.matrix < seen.n_matrices);
  }
  void expert_outputs(const ExpertOutputs& seen) override { n_outputs[seen.tensor] += seen.n_rows; }

  std::map<std::string, std::vector<float>> rows;
  std::map<std::string, int64_t> n_rows, n_outputs;
};

std::string message_of(const std::function<void()>& act, ErrorCode code) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a watched step gives the same logits up to rounding, and the next unwatched one the same bits") {
  for (const char* file : {kLegacy, kSplit, kGreedy, fathom::testing::kIndexerModel}) {
    CAPTURE(file);
    const auto engine = reference_engine(file);
    const std::vector<int32_t> ids = random_prompt(40, 5);
    const std::vector<float> plain = logits_of(*engine, ids);
    Recorder recorder;
    engine->observe(&recorder);
    const std::vector<float> watched = logits_of(*engine, ids);
    engine->observe(nullptr);
    double worst = 0;
    for (size_t i = 0; i < plain.size(); ++i)
      worst = std::max(worst, std::fabs(static_cast<double>(plain[i]) - static_cast<double>(watched[i])));
    CHECK(worst < 1e-3);
    CHECK(logits_of(*engine, ids) == plain);
    // Every token meets every plain matrix once and its layer's experts K times.
    const int64_t k = engine->config().router.n_used;
    for (const auto& [name, n] : recorder.n_rows) {
      CAPTURE(name);
      const bool is_split = name.ends_with("attn_k_b.weight") || name.ends_with("attn_v_b.weight");
      CHECK(n == 40 * (name.find("_exps.") != std::string::npos ? k : is_split ? engine->config().n_heads : 1));
    }
    CHECK(recorder.n_outputs.size() ==
          static_cast<size_t>(engine->config().n_layers - engine->config().n_dense_layers));
    for (const auto& [name, n] : recorder.n_outputs) CHECK(n == 40 * k);
  }
}

TEST_CASE("what W_UV is said to meet, times W_UV, is what the output projection meets") {
  const std::string path = std::string(FATHOM_FIXTURES "/models/") + kSplit;
  const GgufModel model = GgufModel::open(path);
  const Tensor& v_b = *model.find("blk.1.attn_v_b.weight");  // [H, V, C]
  std::vector<float> w(static_cast<size_t>(v_b.shape.n_elements()));
  dequantize_row(v_b.dtype, v_b.data, w.data(), v_b.shape.n_elements());
  for (const char* file : {kSplit, kLegacy}) {
    const auto engine = reference_engine(file);
    Recorder recorder;
    engine->observe(&recorder);
    logits_of(*engine, random_prompt(9, 6));
    if (file == std::string(kLegacy)) {  // the other form of the weight tells of the same matrices
      CHECK(recorder.rows.contains("blk.1.attn_k_b.weight#0"));
      CHECK(recorder.rows.contains("blk.1.attn_v_b.weight#0"));
      CHECK(recorder.rows.contains("blk.1.attn_kv_b.weight#0"));
      continue;
    }
    const std::vector<float>& meets = recorder.rows.at("blk.1.attn_output.weight#0");
    const int64_t n_heads = v_b.dim(0), value = v_b.dim(1), latent = v_b.dim(2);
    double worst = 0;
    for (int64_t h = 0; h < n_heads; ++h) {
      const std::vector<float>& gathered = recorder.rows.at("blk.1.attn_v_b.weight#" + std::to_string(h));
      for (int64_t t = 0; t < 9; ++t) {
        for (int64_t v = 0; v < value; ++v) {
          double sum = 0;
          for (int64_t c = 0; c < latent; ++c)
            sum += static_cast<double>(w[static_cast<size_t>((h * value + v) * latent + c)]) *
                   static_cast<double>(gathered[static_cast<size_t>(t * latent + c)]);
          worst = std::max(
              worst, std::fabs(sum - static_cast<double>(meets[static_cast<size_t>((t * n_heads + h) * value + v)])));
        }
      }
    }
    CHECK(worst < 1e-4);
  }
}

TEST_CASE("an importance matrix is written as llama.cpp's programs read it, and read back") {
  const auto engine = reference_engine(kLegacy);
  const ImportanceReport report =
      measure_importance(*engine, random_prompt(70, 7), {.window = 32, .max_windows = {}}, {}, {});
  CHECK(report.n_windows == 2);
  CHECK(std::isfinite(report.perplexity));
  CHECK_FALSE(report.tensors.contains("output.weight"));
  const TempFolder folder;
  write_importance_matrix(folder / "i.gguf", report.tensors, {"a.txt", report.n_windows, 32});
  const GgufModel file = GgufModel::open(folder / "i.gguf", {.header_only = true});
  CHECK(*file.metadata().text("general.type") == "imatrix");
  CHECK(file.metadata().integer("imatrix.chunk_size") == 32);
  const ImportanceMatrix read = ImportanceMatrix::read(folder / "i.gguf");
  CHECK(read.n_chunks() == 2);
  CHECK(read.dataset() == "a.txt");
  CHECK(read.size() == report.tensors.size());
  const std::string name = "blk.1.ffn_down_exps.weight";
  const InputSquares& squares = report.tensors.at(name);
  const auto n = static_cast<int64_t>(squares.counts.size());
  for (int64_t e = 0; e < n; ++e) {
    const float* mean = read.find(name, {n, 7, squares.width}, e);
    REQUIRE(mean != nullptr);
    const auto count = static_cast<double>(squares.counts[static_cast<size_t>(e)]);
    for (int64_t c = 0; c < squares.width; ++c) {
      const double want = count == 0 ? 1 : squares.sums[static_cast<size_t>(e * squares.width + c)] / count;
      CHECK(static_cast<double>(mean[c]) == doctest::Approx(want));
    }
  }
  CHECK(
      message_of([&] { measure_importance(*engine, random_prompt(20, 7), {.window = 32, .max_windows = {}}, {}, {}); },
                 ErrorCode::kUsage)
          .find("shorter than one window") != std::string::npos);
  CHECK(message_of(
            [&] {
              measure_importance(*engine, random_prompt(70, 7), {.window = 32, .max_windows = {}}, {},
                                 [] { return true; });
            },
            ErrorCode::kInterrupted) == "interrupted");
}

TEST_CASE(
    "the MTP block is measured on every token that has a next one, and keeps its experts when a model is pruned") {
  // V3's block of random weights: a converted checkpoint.
  const TempFolder folder;
  MadeCheckpoint checkpoint = made_v3();
  checkpoint.config["n_group"] = checkpoint.config["topk_group"] = 1;
  checkpoint.save(folder / "hf");
  ConvertOptions c;
  c.folder = folder / "hf";
  c.out = folder / "m.gguf";
  c.type = "bf16";
  convert_checkpoint(c);
  EngineOptions run = fathom::testing::small_engine_options();
  run.model_path = c.out;
  run.mtp = true;
  PruneOptions o;
  {
    const auto engine = Engine::load(run);
    REQUIRE(engine->has_mtp());
    const std::vector<int32_t> text = random_prompt(66, 7);
    const ImportanceReport report = measure_importance(*engine, text, {.window = 33, .max_windows = {}}, {}, {});
    const GgufModel model = GgufModel::open(c.out);
    for (const auto& [name, tensor] : model.tensors()) {
      if (!name.starts_with("blk.2.") || tensor.shape.rank < 2) continue;
      CAPTURE(name);
      if (name.find("embed_tokens") != std::string::npos) continue;  // rows of it are looked up
      REQUIRE(report.tensors.contains(name));
      int64_t n = 0;
      for (const int64_t count : report.tensors.at(name).counts) n += count;
      const deepseek::Config& config = engine->config();
      const bool is_stack = name.find("_exps.") != std::string::npos;
      const bool is_split = name.ends_with("attn_k_b.weight") || name.ends_with("attn_v_b.weight");
      CHECK(n == 2 * 32 * (is_stack ? config.router.n_used : is_split ? config.n_heads : 1));
    }
    o.saliency = measure_experts(*engine, text, {.window = 33, .max_windows = {}}, {}, {}).saliency;
    CHECK(o.saliency.contains("blk.2.ffn_down_exps.weight"));
    const deepseek::Config& config = engine->config();
    o.router = {config.n_experts, config.router.n_used, config.router.n_groups, config.router.n_groups_used,
                config.router.n_groups > 1 ? 2 : 1};
  }
  o.in = c.out;
  o.out = folder / "small.gguf";
  o.type = "copy";
  o.n_keep = o.router.n_experts - o.router.n_groups;
  prune_file(o);
  run.model_path = o.out;
  CHECK(Engine::load(run)->has_mtp());
  o.saliency.erase("blk.2.ffn_down_exps.weight");
  o.out = folder / "without.gguf";
  const WriteReport report = prune_file(o);
  CHECK(report.notes.front().find("MTP") != std::string::npos);
  run.model_path = o.out;
  CHECK_FALSE(Engine::load(run)->has_mtp());
}

TEST_CASE(
    "the experts kept are the best of each group; counts that the router cannot use are refused with those it can") {
  const RouterShape router{8, 2, 2, 1, 2};
  CHECK(choose_experts({1, 5, 3, 4, 9, 9, 0, 9}, router, 4) == std::vector<int64_t>{1, 3, 4, 5});
  CHECK(choose_experts({1, 5, 3, 4, 9, 9, 0, 9}, {8, 2, 1, 1, 1}, 3) == std::vector<int64_t>{4, 5, 7});
  for (const int64_t n : {0, 2, 3, 8, 9}) {
    CAPTURE(n);
    CHECK(message_of([&] { choose_experts(std::vector<double>(8), router, n); }, ErrorCode::kUsage)
              .find("expected one of 4, 6 (") != std::string::npos);
  }
}

TEST_CASE("a pruned model has the kept experts bit for bit, says what was done, and loads") {
  for (const char* file : {kLegacy, kGreedy}) {
    CAPTURE(file);
    const TempFolder folder;
    PruneOptions o;
    o.in = std::string(FATHOM_FIXTURES "/models/") + file;
    o.out = folder / "small.gguf";
    o.type = "copy";
    int64_t n_experts = 0;
    {
      const auto engine = reference_engine(file);
      const deepseek::Config& c = engine->config();
      n_experts = c.n_experts;
      o.router = {c.n_experts, c.router.n_used, c.router.n_groups, c.router.n_groups_used,
                  c.router.n_groups > 1 ? 2 : 1};
      o.saliency = measure_experts(*engine, random_prompt(128, 8), {.window = 64, .max_windows = {}}, {}, {}).saliency;
    }
    o.n_keep = n_experts - o.router.n_groups;
    prune_file(o);
    const GgufModel before = GgufModel::open(o.in), after = GgufModel::open(o.out);
    const std::vector<int64_t> kept = choose_experts(o.saliency.at("blk.1.ffn_down_exps.weight"), o.router, o.n_keep);
    for (const char* part : {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight", "blk.1.ffn_gate_inp.weight"}) {
      CAPTURE(part);
      const Tensor &from = *before.find(part), &to = *after.find(part);
      REQUIRE(to.dim(0) == o.n_keep);
      REQUIRE(to.dtype == from.dtype);
      for (size_t i = 0; i < kept.size(); ++i)
        CHECK(std::memcmp(from.row(kept[i]), to.row(static_cast<int64_t>(i)),
                          static_cast<size_t>(to.strides_bytes[0])) == 0);
    }
    if (const Tensor* bias = before.find("blk.1.exp_probs_b.bias")) {
      for (size_t i = 0; i < kept.size(); ++i)
        CHECK(after.find("blk.1.exp_probs_b.bias")->as<float>()[i] == bias->as<float>()[kept[i]]);
    }
    CHECK(after.metadata().boolean("fathom.prune.is_lossy") == true);
    CHECK(after.metadata().integer("fathom.prune.experts_before") == n_experts);
    CHECK(after.metadata().text("general.name")->find("of " + std::to_string(n_experts) + " experts") !=
          std::string::npos);
    EngineOptions run = fathom::testing::small_engine_options();
    run.model_path = o.out;
    const auto engine = Engine::load(run);
    CHECK(engine->config().n_experts == o.n_keep);
    CHECK(engine->config().router.n_groups == o.router.n_groups);
    for (const float logit : logits_of(*engine, random_prompt(10, 9))) REQUIRE(std::isfinite(logit));
    o.out = o.in;
    CHECK(message_of([&] { prune_file(o); }, ErrorCode::kUsage).find("replace its source") != std::string::npos);
  }
}

TEST_CASE("a checkpoint's folder runs as the file that converting it makes") {
  struct Case {
    MadeCheckpoint checkpoint;
    size_t n_files;
    const char* type;
  };
  const Case cases[] = {{made_v3(), 2, "bf16"},
                        {made_v3(32), 1, "bf16"},
                        {made_v32(), 1, "bf16"},
                        {made_v32(32), 2, "bf16"},
                        {made_v1(), 1, "f32"}};
  for (const Case& c : cases) {
    CAPTURE(c.checkpoint.config["model_type"].get<std::string>());
    const TempFolder folder;
    c.checkpoint.save(folder / "hf", c.n_files);
    ConvertOptions o;
    o.folder = folder / "hf";
    o.out = folder / "m.gguf";
    o.type = c.type;
    convert_checkpoint(o);
    EngineOptions run = fathom::testing::small_engine_options();
    run.isa = "reference";
    run.cache_type = DType::kF32;
    run.model_path = o.out;
    const std::vector<int32_t> ids = random_prompt(30, 10);
    const std::vector<float> want = logits_of(*Engine::load(run), ids);
    run.model_path = o.folder;
    const auto engine = Engine::load(run);
    CHECK(logits_of(*engine, ids) == want);
    CHECK(engine->tokenizer().encode("Hello world", false) == Engine::load([&] {
                                                                EngineOptions f = run;
                                                                f.model_path = o.out;
                                                                return f;
                                                              }())
                                                                  ->tokenizer()
                                                                  .encode("Hello world", false));
    CHECK(engine->info().path == o.folder);
  }
}
