// The newest models against logits that others computed exactly, as near as the CPU's fast kernels come to them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/engine.h"
#include "support/safetensors.h"

using namespace fathom;

namespace {

double percentile(std::vector<double> v, double p) {
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<size_t>(p * static_cast<double>(v.size())))];
}

/// Root-mean-square difference of each stored position, in deviations of its prompt's logits.
std::vector<double> differences(Engine& engine, const fathom::testing::SafetensorsFixture& golden,
                                const std::string& prompt) {
  const std::vector<int32_t> ids = golden.i32(prompt + "ids"), positions = golden.i32(prompt + "positions");
  const std::vector<float> want = golden.f32(prompt + "logits");
  const auto vocab = static_cast<size_t>(engine.info().vocab_size);
  double mean = 0, deviation = 0;
  for (const float w : want) mean += w / static_cast<double>(want.size());
  for (const float w : want) deviation += (w - mean) * (w - mean) / static_cast<double>(want.size());
  Sequence sequence(engine.pool());
  std::vector<float> got;
  for (size_t at = 0; at < ids.size(); at += 48) {  // large steps, then the rest
    const StepPart part{&sequence, std::span(ids).subspan(at, std::min<size_t>(48, ids.size() - at)), Outputs::kAll};
    REQUIRE(engine.step({&part, 1}) == StepStatus::kDone);
    for (int64_t i = 0; i < engine.n_outputs(); ++i)
      got.insert(got.end(), engine.logits(i).begin(), engine.logits(i).end());
  }
  std::vector<double> rms;
  for (size_t i = 0; i < positions.size(); ++i) {
    double squares = 0;
    for (size_t w = 0; w < vocab; ++w) {
      const double d = static_cast<double>(got[static_cast<size_t>(positions[i]) * vocab + w]) -
                       static_cast<double>(want[i * vocab + w]);
      squares += std::isfinite(d) ? d * d : INFINITY;
    }
    rms.push_back(std::sqrt(squares / static_cast<double>(vocab) / deviation));
  }
  return rms;
}

}  // namespace

TEST_CASE("cuda: V3.2's and V4's logits are as near the exact ones as the formats allow") {
  // Limits as in tests/engine/golden_models_test.cpp.
  struct Model {
    const char *file, *golden;
    double median, p90;
  };
  for (const Model& m : {Model{"v32/v32-bf16.gguf", "v32/golden", 0.02, 0.06},
                         Model{"v4/v4-mxfp4.gguf", "v4/v4-mxfp4.golden", 0.05, 0.19}}) {
    CAPTURE(m.file);
    EngineOptions o;
    o.model_path = std::string(FATHOM_FIXTURES "/models/") + m.file;
    o.backend = "cuda";
    o.n_threads = 1;
    o.context = 256;
    const auto engine = Engine::load(o);
    REQUIRE(engine->on_device());
    const fathom::testing::SafetensorsFixture golden(FATHOM_FIXTURES "/models/" + std::string(m.golden) +
                                                     ".safetensors");
    std::vector<double> rms;
    for (const char* prompt : {"p2.", "p4.", "p5."}) {  // 17, 64 and 65 tokens
      const std::vector<double> of_prompt = differences(*engine, golden, prompt);
      rms.insert(rms.end(), of_prompt.begin(), of_prompt.end());
    }
    CHECK(percentile(rms, 0.5) < m.median);
    CHECK(percentile(rms, 0.9) < m.p90);
    MESSAGE(std::string(m.file) << ": median " << percentile(rms, 0.5) << ", 90th percentile " << percentile(rms, 0.9));
  }
}
