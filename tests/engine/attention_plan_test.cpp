// The forms of attention: where chunks begin and end changes no bit of a row, and where the form changes.
#include "engine/attention_plan.h"

#include <doctest/doctest.h>

#include "cpu/cpu_backend.h"
#include "engine_fixture.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

/// Logits of every token of a prompt, evaluated in chunks of at most `chunk` in the plan's forms: [T * vocab].
std::vector<float> all_logits(Engine& engine, const std::vector<int32_t>& ids, int64_t chunk) {
  const auto n_prompt = static_cast<int64_t>(ids.size());
  const AttentionPlan plan = engine.attention_plan(n_prompt);
  Sequence sequence(engine.pool());
  std::vector<float> out;
  while (sequence.length() < n_prompt) {
    const int64_t at = sequence.length(), n = plan.of_one_form(at, std::min(chunk, n_prompt - at));
    const StepPart part{&sequence, std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                        Outputs::kAll, plan.form(at)};
    REQUIRE(engine.step({&part, 1}) == StepStatus::kDone);
    for (int64_t i = 0; i < engine.n_outputs(); ++i)
      out.insert(out.end(), engine.logits(i).begin(), engine.logits(i).end());
  }
  return out;
}

}  // namespace

TEST_CASE("the chunks of a prompt change no bit of any token's logits") {
  for (const std::string& isa : cpu_isa_names()) {
    CAPTURE(isa);
    for (const char* file : {kLatentModel, "v1/v1-f16.gguf", "v2/v2-bf16.gguf", "v3/v3-q4_k_m.gguf",
                             "v3/v3-iq2_xxs-mla.gguf", kIndexerModel}) {
      CAPTURE(file);
      EngineOptions options = small_engine_options(file);
      options.isa = isa;
      const auto engine = Engine::load(options);
      const std::vector<int32_t> ids = random_prompt(isa == "reference" ? 150 : 300, 1);
      const std::vector<float> whole = all_logits(*engine, ids, 512);
      for (const int64_t chunk : {1, 7, 64, 65, 96}) {
        if (isa == "reference" && chunk < 64) continue;  // slow, and the same loop for every token
        CAPTURE(chunk);
        CHECK(all_logits(*engine, ids, chunk) == whole);
      }
    }
  }
}

TEST_CASE("the forms differ, which is why a plan is needed") {
  const auto engine = Engine::load(small_engine_options());
  EngineOptions absorbed = small_engine_options();
  absorbed.attention = AttentionForm::kAbsorbed;
  const std::vector<int32_t> ids = random_prompt(300, 1);
  CHECK(all_logits(*engine, ids, 512) != all_logits(*Engine::load(absorbed), ids, 512));
}

TEST_CASE("a plan expands whole blocks above its threshold, and cuts chunks where the form changes") {
  const ExpandThresholds t{128, 64};
  const AttentionPlan below(127, t), none(191, t), one(192, t), two(300, t);
  for (int64_t pos = 0; pos < 400; ++pos) {
    CAPTURE(pos);
    CHECK_FALSE(below.expanded(pos));
    CHECK_FALSE(none.expanded(pos));
    CHECK(one.expanded(pos) == (pos >= 128 && pos < 192));
    CHECK(two.expanded(pos) == (pos >= 128 && pos < 256));
  }
  CHECK(none.of_one_form(100, 90) == 90);
  CHECK(one.of_one_form(100, 90) == 28);
  CHECK(one.of_one_form(128, 90) == 64);
  CHECK(one.of_one_form(192, 90) == 90);
}
