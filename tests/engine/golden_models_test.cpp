// Small models of every generation against reference logits that an independent float64 program computed
// (tests/fixtures/README.md). Differences are in units of the logits' standard deviation over the vocabulary.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "cpu/cpu_backend.h"
#include "engine/engine.h"
#include "engine/generate.h"
#include "support/safetensors.h"

using namespace fathom;

namespace {

struct GoldenModel {
  std::string file;              ///< below tests/fixtures/models
  std::string golden;            ///< without extension
  double fast_median, fast_p90;  ///< limits of a position's RMS difference with the fast kernels
};

// Limits: 1.5 times what the better known engines show on the same files (fixtures/README.md, Tolerances).
const GoldenModel kModels[] = {
    {"v1/v1-f16.gguf", "v1/golden", 0.02, 0.06},
    {"v2/v2-bf16.gguf", "v2/golden", 0.02, 0.06},
    {"v2lite/v2lite-q4_k_m-mla-00001-of-00003.gguf", "v2lite/v2lite-q4_k_m-mla.golden", 0.066, 0.21},
    {"v2lite/v2lite-iq4_xs-old.gguf", "v2lite/v2lite-iq4_xs-old.golden", 0.084, 0.24},
    {"v3/v3-q4_k_m.gguf", "v3/v3-q4_k_m.golden", 0.066, 0.21},
    {"v3/v3-iq4_xs-mla.gguf", "v3/v3-iq4_xs-mla.golden", 0.084, 0.24},
    {"v3/v3-iq2_xxs-mla.gguf", "v3/v3-iq2_xxs-mla.golden", 0.073, 0.21},
    {"v3/v3-mxfp4-mla.gguf", "v3/v3-mxfp4-mla.golden", 0.061, 0.20},
    {"v32/v32-bf16.gguf", "v32/golden", 0.02, 0.06},
    {"v4/v4-mxfp4.gguf", "v4/v4-mxfp4.golden", 0.05, 0.19},
};

constexpr double kExactLimit = 5e-4;
/// Below this a route hangs on the last bits: the reference itself would choose otherwise in float32.
constexpr double kSureChoice = 1e-5;

struct Prompt {
  std::vector<int32_t> ids, positions;
  std::vector<float> logits;  ///< [positions, vocab]
  double logit_std, choice_margin;
};

struct Golden {
  std::vector<Prompt> prompts;
  nlohmann::json greedy;

  explicit Golden(const std::string& name) {
    const std::string path = std::string(FATHOM_FIXTURES "/models/") + name;
    const fathom::testing::SafetensorsFixture tensors(path + ".safetensors");
    nlohmann::json about;
    std::ifstream(path + ".json") >> about;
    for (size_t k = 0; k < about["prompts"].size(); ++k) {
      const std::string p = "p" + std::to_string(k) + ".";
      prompts.push_back({tensors.i32(p + "ids"), tensors.i32(p + "positions"), tensors.f32(p + "logits"),
                         about["prompts"][k]["logit_std"], about["prompts"][k]["choice_margin_min"]});
    }
    greedy = about["greedy"];
  }
};

std::unique_ptr<Engine> load(const std::string& file, const std::string& isa, std::optional<DType> cache,
                             AttentionForm form, int64_t chunk, int n_threads = 2) {
  EngineOptions o;
  o.model_path = std::string(FATHOM_FIXTURES "/models/") + file;
  o.isa = isa;
  o.n_threads = n_threads;
  o.context = 512;
  o.cache_type = cache;
  o.attention = form;
  o.chunk_tokens = chunk;
  return Engine::load(o);
}

/// Logits of every token, prefilled in chunks of `chunk`: [T * vocab].
std::vector<float> all_logits(Engine& engine, const std::vector<int32_t>& ids, int64_t chunk) {
  Sequence sequence(engine.pool());
  std::vector<float> out;
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(chunk)) {
    const size_t n = std::min(static_cast<size_t>(chunk), ids.size() - at);
    const StepPart part{&sequence, {ids.data() + at, n}, Outputs::kAll};
    REQUIRE(engine.step({&part, 1}) == StepStatus::kDone);
    for (int64_t i = 0; i < engine.n_outputs(); ++i)
      out.insert(out.end(), engine.logits(i).begin(), engine.logits(i).end());
  }
  return out;
}

/// Largest and root-mean-square difference at each stored position, in deviations.
struct Difference {
  double largest = 0;
  std::vector<double> rms;
};

Difference compare(const Prompt& p, const std::vector<float>& got, size_t vocab) {
  Difference d;
  for (size_t i = 0; i < p.positions.size(); ++i) {
    double squares = 0;
    for (size_t w = 0; w < vocab; ++w) {
      const double diff = std::fabs(static_cast<double>(got[static_cast<size_t>(p.positions[i]) * vocab + w]) -
                                    static_cast<double>(p.logits[i * vocab + w])) /
                          p.logit_std;
      d.largest = std::isfinite(diff) ? std::max(d.largest, diff) : INFINITY;
      squares += diff * diff;
    }
    d.rms.push_back(std::sqrt(squares / static_cast<double>(vocab)));
  }
  return d;
}

double percentile(std::vector<double> v, double p) {
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<size_t>(p * static_cast<double>(v.size())))];
}

}  // namespace

TEST_CASE("reference kernels give the reference logits, whole or in pieces, expanded or absorbed") {
  for (const GoldenModel& m : kModels) {
    CAPTURE(m.file);
    const Golden golden(m.golden);
    const struct {
      int64_t chunk;
      AttentionForm form;
    } ways[] = {{512, AttentionForm::kAuto},
                {7, AttentionForm::kAuto},
                {64, AttentionForm::kAbsorbed},
                {65, AttentionForm::kExpanded}};
    for (const auto& way : ways) {
      CAPTURE(way.chunk);
      const auto engine = load(m.file, "reference", DType::kF32, way.form, way.chunk);
      double worst = 0;
      for (const Prompt& p : golden.prompts) {
        if (p.choice_margin < kSureChoice || (way.chunk != 512 && p.ids.size() > 140)) continue;
        CAPTURE(p.ids.size());
        const Difference d =
            compare(p, all_logits(*engine, p.ids, way.chunk), static_cast<size_t>(engine->info().vocab_size));
        CHECK(d.largest < kExactLimit);
        worst = std::max(worst, d.largest);
        CHECK(engine->pool().used_pages() == 0);
      }
      MESSAGE(m.file << ", chunks of " << way.chunk << ": largest difference " << worst);
    }
  }
}

TEST_CASE("fast kernels of every instruction set stay within the format's own error") {
  for (const std::string& isa : cpu_isa_names()) {
    if (isa == "reference") continue;
    CAPTURE(isa);
    for (const GoldenModel& m : kModels) {
      CAPTURE(m.file);
      const Golden golden(m.golden);
      const auto engine = load(m.file, isa, {}, AttentionForm::kAuto, 512);
      std::vector<double> rms;
      for (const Prompt& p : golden.prompts) {
        const Difference d =
            compare(p, all_logits(*engine, p.ids, 512), static_cast<size_t>(engine->info().vocab_size));
        rms.insert(rms.end(), d.rms.begin(), d.rms.end());
      }
      CHECK(percentile(rms, 0.5) < m.fast_median);
      CHECK(percentile(rms, 0.9) < m.fast_p90);
      MESSAGE(isa << " " << m.file << ": median " << percentile(rms, 0.5) << ", 90th percentile "
                  << percentile(rms, 0.9));
    }
  }
}

TEST_CASE("greedy text equals the reference token for token up to the first close call") {
  for (const GoldenModel& m : kModels) {
    CAPTURE(m.file);
    const Golden golden(m.golden);
    const auto engine = load(m.file, "reference", DType::kF32, AttentionForm::kAuto, 512);
    Scheduler scheduler(*engine, one_reader());
    const std::vector<int32_t> want = golden.greedy["ids"];
    Request request;
    request.prompt = golden.prompts[golden.greedy["prompt"]].ids;
    request.options.sampling.temperature = 0;
    request.options.ignore_eos = true;
    request.options.max_tokens = static_cast<int64_t>(want.size());
    const Generation got = generate(scheduler, request, {});
    REQUIRE(got.token_ids.size() == want.size());
    for (size_t i = 0; i < want.size() && golden.greedy["margins"][i] > 0.005; ++i) {
      CAPTURE(i);
      CHECK(got.token_ids[i] == want[i]);
    }
  }
}

TEST_CASE("the number of threads changes no bit of the logits") {
  for (const std::string& isa : cpu_isa_names()) {
    CAPTURE(isa);
    for (const GoldenModel& m : kModels) {
      CAPTURE(m.file);
      const Golden golden(m.golden);
      const std::vector<int32_t>& ids = golden.prompts[6].ids;
      const auto one = load(m.file, isa, {}, AttentionForm::kAuto, 512, 1);
      const auto three = load(m.file, isa, {}, AttentionForm::kAuto, 512, 3);
      CHECK(all_logits(*one, ids, 64) == all_logits(*three, ids, 64));
    }
  }
}

TEST_CASE("a sequence's decode logits are the same bits alone and beside others") {
  for (const std::string& isa : cpu_isa_names()) {
    CAPTURE(isa);
    for (const GoldenModel& m : kModels) {
      CAPTURE(m.file);
      const Golden golden(m.golden);
      const auto engine = load(m.file, isa, {}, AttentionForm::kAuto, 512);
      // Three timelines of different lengths, each stepped once alone (on a fork) and once together.
      std::vector<Sequence> sequences;
      std::vector<std::vector<float>> alone;
      std::vector<int32_t> next;
      for (const size_t k : {2, 4, 5}) {
        const std::vector<int32_t>& ids = golden.prompts[k].ids;
        sequences.emplace_back(engine->pool());
        REQUIRE(engine->prefill(sequences.back(), {ids.data(), ids.size() - 1}, Outputs::kNone));
        next.push_back(ids.back());
        Sequence fork = sequences.back().fork();
        const StepPart part{&fork, {&next.back(), 1}, Outputs::kLast};
        REQUIRE(engine->step({&part, 1}) == StepStatus::kDone);
        alone.emplace_back(engine->logits(0).begin(), engine->logits(0).end());
      }
      std::vector<StepPart> parts;
      for (size_t i = 0; i < sequences.size(); ++i) parts.push_back({&sequences[i], {&next[i], 1}, Outputs::kLast});
      REQUIRE(engine->step(parts) == StepStatus::kDone);
      for (size_t i = 0; i < sequences.size(); ++i) {
        CHECK(std::equal(alone[i].begin(), alone[i].end(), engine->logits(static_cast<int64_t>(i)).begin()));
      }
    }
  }
}
