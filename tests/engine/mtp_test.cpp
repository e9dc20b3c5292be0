// The MTP block: its guesses against an independent program's, and as the model's own text bears them out.
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine_fixture.h"
#include "support/safetensors.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

struct Guess {
  int32_t id;
  double probability;
};

Guess likeliest(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - static_cast<double>(*best));
  return {static_cast<int32_t>(best - logits.begin()), 1 / sum};
}

}  // namespace

TEST_CASE("guesses of the MTP block have the reference's probabilities, whole or in pieces") {
  const SafetensorsFixture golden(FATHOM_FIXTURES "/models/v32/golden.safetensors");
  EngineOptions o;
  o.model_path = FATHOM_FIXTURES "/models/v32/v32-bf16.gguf";
  o.isa = "reference";
  o.cache_type = DType::kF32;
  o.context = 512;
  o.mtp = true;
  const auto engine = Engine::load(o);
  REQUIRE(engine->has_mtp());
  for (const int64_t chunk : {512, 7}) {
    for (const int k : {1, 2, 3, 5, 7}) {
      CAPTURE(k);
      const std::string p = "p" + std::to_string(k) + ".";
      const std::vector<int32_t> ids = golden.i32(p + "ids"), positions = golden.i32(p + "mtp_positions");
      const std::vector<float> want = golden.f32(p + "mtp_logits");
      const auto vocab = static_cast<size_t>(engine->info().vocab_size);
      Sequence sequence(engine->pool());
      std::vector<Draft> drafts;                                  // of every position
      const auto n_known = static_cast<int64_t>(ids.size()) - 1;  // tokens with a successor
      for (int64_t at = 0; at < n_known; at += chunk) {
        const int64_t n = std::min(chunk, n_known - at);
        const std::span<const int32_t> here(ids.data() + at, static_cast<size_t>(n));
        const StepPart part{&sequence, here, Outputs::kNone};
        REQUIRE(engine->step({&part, 1}, {}, true) == StepStatus::kDone);
        for (int64_t i = 0; i < n; ++i) {  // one at a time, each with its guess
          const DraftPart draft{&sequence, at + i, i, {ids.data() + at + i + 1, 1}, 1};
          const std::vector<Draft> guess = engine->draft({&draft, 1});
          REQUIRE(guess.size() == 1);
          drafts.push_back(guess[0]);
        }
      }
      for (size_t i = 0; i < positions.size(); ++i) {
        const Guess g = likeliest({want.data() + i * vocab, vocab});
        const Draft& got = drafts[static_cast<size_t>(positions[i])];
        CHECK(got.id == g.id);
        CHECK(static_cast<double>(got.probability) == doctest::Approx(g.probability).epsilon(1e-4));
      }
    }
  }
}
