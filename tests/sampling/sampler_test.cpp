#include "sampling/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "core/error.h"
#include "sampling/random.h"
#include "sampling/softmax.h"

namespace {

using namespace fathom;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Everything off, temperature 1.
SamplingParams plain() {
  SamplingParams p;
  p.temperature = 1.0f;
  p.top_p = 1.0f;
  return p;
}

std::vector<float> random_logits(size_t n, float spread, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<float> logits(n);
  for (float& x : logits) {
    double sum = 0;  // about normal
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(rng()) * 0x1p-32;
    x = spread * static_cast<float>(sum - 6);
  }
  return logits;
}

/// Steps 1 to 9 as the comment of SamplingParams says, in doubles and full sorts. Probability per token.
/// `margin`: how close top_p came to deciding otherwise.
std::vector<double> oracle(const SamplingParams& p, std::vector<float> logits, const std::vector<int32_t>& prompt,
                           const std::vector<int32_t>& answer, double* margin = nullptr) {
  for (const auto& [id, bias] : p.logit_bias) logits[static_cast<size_t>(id)] += bias;
  std::vector<int32_t> text = prompt;
  text.insert(text.end(), answer.begin(), answer.end());
  const size_t n_window = std::min(text.size(), static_cast<size_t>(p.repeat_last_n));
  for (const int32_t id : std::set<int32_t>(text.end() - static_cast<int64_t>(n_window), text.end())) {
    float& x = logits[static_cast<size_t>(id)];
    x = x > 0 ? x / p.repeat_penalty : x * p.repeat_penalty;
  }
  for (const int32_t id : std::set<int32_t>(answer.begin(), answer.end())) {
    const auto count = static_cast<float>(std::count(answer.begin(), answer.end(), id));
    logits[static_cast<size_t>(id)] -= p.frequency_penalty * count + p.presence_penalty;
  }
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (p.top_k > 0 && order.size() > static_cast<size_t>(p.top_k)) order.resize(static_cast<size_t>(p.top_k));
  const double max = static_cast<double>(logits[order[0]]);
  const auto weight = [&](size_t id, double t) { return std::exp((static_cast<double>(logits[id]) - max) / t); };
  if (p.top_p < 1) {
    double total = 0, reached = 0;
    for (const size_t id : order) total += weight(id, 1);
    size_t n = 0;
    while (n < order.size()) {
      const double before = reached;
      reached += weight(order[n++], 1);
      const double target = static_cast<double>(p.top_p) * total;
      if (margin)
        *margin =
            std::min({*margin, std::abs(reached - target) / total, n > 1 ? std::abs(before - target) / total : 1});
      if (reached >= target) break;
    }
    order.resize(n);
  }
  if (p.min_p > 0) std::erase_if(order, [&](size_t id) { return weight(id, 1) < static_cast<double>(p.min_p); });
  double total = 0;
  const double t = static_cast<double>(p.temperature);
  for (const size_t id : order) total += weight(id, t);
  std::vector<double> probability(logits.size(), 0.0);
  for (const size_t id : order) probability[id] = weight(id, t) / total;
  return probability;
}

/// Draws one token at each of n steps and compares the counts with the exact distribution: nothing outside of it, and a
/// chi-square below its mean plus six standard deviations.
void check_distribution(const SamplingParams& p, const std::vector<float>& logits, int n) {
  const std::vector<double> expected = oracle(p, logits, {}, {});
  std::vector<int> counts(logits.size(), 0);
  Sampler sampler(p);
  for (int i = 0; i < n; ++i) {
    const TokenChoice choice = sampler.sample(logits);
    REQUIRE(choice.id >= 0);
    REQUIRE(static_cast<size_t>(choice.id) < logits.size());
    ++counts[static_cast<size_t>(choice.id)];
    sampler.accept(choice.id);
  }
  double chi_square = 0, rest_expected = 0, rest_count = 0;
  int cells = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    CAPTURE(i);
    if (expected[i] == 0) CHECK(counts[i] == 0);
    const double mean = expected[i] * n;
    if (mean < 8) {
      rest_expected += mean;
      rest_count += counts[i];
      continue;
    }
    chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++cells;
  }
  if (rest_expected >= 8) {
    chi_square += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
    ++cells;
  }
  CAPTURE(p.seed);
  CHECK(chi_square < cells - 1 + 6 * std::sqrt(2.0 * std::max(cells - 1, 1)));
}

TEST_CASE("the exponential is exact to 3e-7 down to -87 and zero below") {
  double worst = 0;
  for (float x = 0; x > -87.0f; x -= 0.00137f) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(exp_nonpositive(x)) - exact) / exact);
  }
  CHECK(worst < 3e-7);
  CHECK(exp_nonpositive(0.0f) == 1.0f);
  CHECK(exp_nonpositive(-87.01f) == 0.0f);
  CHECK(exp_nonpositive(-std::numeric_limits<float>::max()) == 0.0f);
  CHECK(exp_nonpositive(-kInfinity) == 0.0f);
}

TEST_CASE("random numbers are uniform, depend on seed and step alone, and never change") {
  // Frozen: a change here changes every text made with a seed.
  CHECK(random_unit(0, 0) == 0.5277580838124728);
  CHECK(random_unit(0, 1) == 0.23035392493418017);
  CHECK(random_unit(42, 1000) == 0.11208111411564126);
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{7}, ~uint64_t{0}}) {
    CAPTURE(seed);
    constexpr int kBins = 64, kDraws = 64000;
    std::vector<int> bins(kBins, 0);
    double serial = 0;
    for (uint64_t step = 0; step < kDraws; ++step) {
      const double u = random_unit(seed, step);
      REQUIRE(u >= 0);
      REQUIRE(u < 1);
      ++bins[static_cast<size_t>(u * kBins)];
      serial += (u - 0.5) * (random_unit(seed, step + 1) - 0.5);
    }
    double chi_square = 0;
    for (const int b : bins) chi_square += (b - 1000.0) * (b - 1000.0) / 1000.0;
    CHECK(chi_square < 63 + 6 * std::sqrt(2.0 * 63));
    CHECK(std::abs(serial / kDraws) < 6.0 / 12 / std::sqrt(kDraws));
  }
}

TEST_CASE("temperature 0 takes the highest logit, the lowest id among equals") {
  SamplingParams p = plain();
  p.temperature = 0;
  CHECK(Sampler(p).sample(std::vector<float>{1, 3, 2}).id == 1);
  CHECK(Sampler(p).sample(std::vector<float>{1, 3, 3, 3}).id == 1);
  CHECK(Sampler(p).sample(std::vector<float>{-5}).id == 0);
  CHECK(Sampler(p).sample(std::vector<float>{-kInfinity, -kInfinity, -9}).id == 2);
  CHECK(Sampler(p).sample(std::vector<float>{-0.0f, 0.0f}).id == 0);
  for (const size_t n : {1u, 15u, 16u, 17u, 129280u}) {
    for (const size_t at : {size_t{0}, n / 2, n - 1}) {
      std::vector<float> logits = random_logits(n, 1, 5);
      logits[at] = 50;
      CHECK(Sampler(p).sample(logits).id == static_cast<int32_t>(at));
    }
  }
  p.temperature = 1e-40f;  // no division by it
  CHECK(Sampler(p).sample(std::vector<float>{1, 3, 3}).id == 1);
}

TEST_CASE("draws follow the exact distribution, filter by filter") {
  const std::vector<float> logits{2.0f, 1.5f, -kInfinity, 1.5f, 0.0f, -1.0f, 0.5f, -4.0f, 1.0f, -20.0f};
  const std::vector<float> wide = random_logits(3000, 2, 11);
  std::vector<SamplingParams> cases;
  for (const float temperature : {0.3f, 1.0f, 3.0f}) {
    SamplingParams p = plain();
    p.temperature = temperature;
    cases.push_back(p);
    p.top_k = 4;
    cases.push_back(p);
    p.top_p = 0.8f;
    cases.push_back(p);
    p.top_k = 0;
    cases.push_back(p);
    p.min_p = 0.5f;
    cases.push_back(p);
    p.top_p = 1;
    cases.push_back(p);
  }
  uint64_t seed = 100;
  for (SamplingParams& p : cases) {
    CAPTURE(p.temperature);
    CAPTURE(p.top_k);
    CAPTURE(p.top_p);
    CAPTURE(p.min_p);
    p.seed = seed++;
    check_distribution(p, logits, 20000);
    check_distribution(p, wide, 5000);
  }
}

TEST_CASE("the default parameters follow the exact distribution too") {
  SamplingParams p;
  p.seed = 3;
  check_distribution(p, random_logits(500, 1.5f, 2), 20000);
}

TEST_CASE("the last of many equal tokens is reached, and none outside") {
  const std::vector<float> flat(5000, 1.25f);
  SamplingParams p = plain();
  p.top_k = 3000;
  Sampler sampler(p);
  int32_t highest = 0;
  for (int i = 0; i < 4000; ++i) {
    const int32_t id = sampler.sample(flat).id;
    sampler.accept(id);
    highest = std::max(highest, id);
  }
  CHECK(highest < 3000);  // lower ids first
  CHECK(highest > 2980);
}

TEST_CASE("filters keep exactly the tokens that a full sort would, on vocabularies of all sizes") {
  for (uint32_t seed = 1; seed <= 120; ++seed) {
    CAPTURE(seed);
    std::mt19937 rng(seed);
    const size_t n = seed % 10 == 0 ? 129280 : 1 + rng() % 4000;
    std::vector<float> logits = random_logits(n, static_cast<float>(1 + rng() % 5), seed);
    if (seed % 3 == 0) {
      for (float& x : logits) x = std::round(x * 4) / 4;  // many equals
    }
    SamplingParams p = plain();
    p.temperature = 0.5f + static_cast<float>(rng() % 4);
    const int32_t top_k[] = {0, 1, 40, 700, 100000};
    const float top_p[] = {1.0f, 0.0f, 0.3f, 0.95f, 0.999f};
    const float min_p[] = {0.0f, 0.0f, 0.01f, 1.0f};
    p.top_k = top_k[rng() % 5];
    p.top_p = top_p[rng() % 5];
    p.min_p = min_p[rng() % 4];
    CAPTURE(p.top_k);
    CAPTURE(p.top_p);
    CAPTURE(p.min_p);
    double margin = 1;
    const std::vector<double> expected = oracle(p, logits, {}, {}, &margin);
    if (margin < 1e-6) continue;
    // The drawn token must be the inverse of the oracle's cumulative distribution in order of ids.
    for (uint64_t draw = 0; draw < 8; ++draw) {
      p.seed = draw;
      const double u = random_unit(p.seed, 0);
      double reached = 0, before = 0;
      const int32_t id = Sampler(p).sample(logits).id;
      for (int32_t i = 0; i <= id; ++i) {
        before = reached;
        reached += expected[static_cast<size_t>(i)];
      }
      CAPTURE(id);
      CHECK(expected[static_cast<size_t>(id)] > 0);
      CHECK(before <= u + 2e-5);
      CHECK(reached >= u - 2e-5);
    }
  }
}

TEST_CASE("penalties and bias equal the naive rule along a text, and repeated tokens count") {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    std::mt19937 rng(seed);
    SamplingParams p = plain();
    p.seed = seed;
    p.repeat_penalty = seed % 2 ? 1.3f : 1.0f;
    p.repeat_last_n = static_cast<int32_t>(rng() % 12);
    p.frequency_penalty = seed % 3 ? 0.4f : 0.0f;
    p.presence_penalty = seed % 5 ? 0.7f : 0.0f;
    if (seed % 4 == 0) p.logit_bias = {{3, 2.0f}, {5, -kInfinity}};
    std::vector<int32_t> prompt, answer;
    for (uint32_t i = rng() % 20; i > 0; --i) prompt.push_back(static_cast<int32_t>(rng() % 12));
    Sampler sampler(p);
    sampler.prime(prompt);
    for (int step = 0; step < 40; ++step) {
      const std::vector<float> logits = random_logits(12, 1, seed * 1000 + static_cast<uint32_t>(step));
      const std::vector<double> expected = oracle(p, logits, prompt, answer);
      const int32_t id = sampler.sample(logits).id;
      const double u = random_unit(seed, static_cast<uint64_t>(step));
      double before = 0;
      for (int32_t i = 0; i < id; ++i) before += expected[static_cast<size_t>(i)];
      REQUIRE(before <= u + 1e-5);
      REQUIRE(before + expected[static_cast<size_t>(id)] >= u - 1e-5);
      sampler.accept(id);
      answer.push_back(id);
    }
  }
}

TEST_CASE("penalties act on greedy choices") {
  SamplingParams p = plain();
  p.temperature = 0;
  p.repeat_penalty = 2;
  Sampler sampler(p);
  const std::vector<float> logits{1.0f, 1.5f, -0.1f};
  const int32_t seen[] = {1};
  sampler.prime(seen);
  CHECK(sampler.sample(logits).id == 0);
  sampler.accept(0);
  CHECK(sampler.sample(logits).id == 1);
  p.repeat_penalty = 1;
  p.logit_bias[2] = 100;
  CHECK(Sampler(p).sample(logits).id == 2);
}

TEST_CASE("the choice depends on seed and position, not on how often or beside whom one asks") {
  SamplingParams p;
  p.seed = 42;
  const std::vector<float> logits = random_logits(1000, 1, 9);
  Sampler alone(p), asked_twice(p), other(p);
  std::vector<int32_t> first, second;
  for (int i = 0; i < 50; ++i) {
    first.push_back(alone.sample(logits).id);
    alone.accept(first.back());
    (void)asked_twice.sample(logits);
    second.push_back(asked_twice.sample(logits).id);
    asked_twice.accept(second.back());
    other.accept(other.sample(random_logits(10, 1, 1)).id);
  }
  CHECK(first == second);
  CHECK(alone.n_accepted() == 50);
  CHECK(std::set<int32_t>(first.begin(), first.end()).size() > 10);
  p.seed = 43;
  Sampler reseeded(p);
  std::vector<int32_t> third;
  for (int i = 0; i < 50; ++i) {
    third.push_back(reseeded.sample(logits).id);
    reseeded.accept(third.back());
  }
  CHECK(first != third);
}

TEST_CASE("only allowed tokens are chosen, however unlikely they are") {
  std::vector<float> logits = random_logits(130, 1, 4);
  logits[0] = 40;
  std::vector<uint64_t> allowed(3, 0);
  const std::set<int32_t> ids{5, 63, 64, 129};
  for (const int32_t id : ids) allowed[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
  for (const float temperature : {0.0f, 0.6f, 100.0f}) {
    SamplingParams p;
    p.temperature = temperature;
    p.top_k = 3;
    Sampler sampler(p);
    for (int i = 0; i < 200; ++i) {
      const TokenChoice choice = sampler.sample(logits, allowed);
      CHECK(ids.count(choice.id) == 1);
      sampler.accept(choice.id);
    }
  }
  Sampler sampler(plain());
  CHECK_THROWS_WITH_AS(sampler.sample(logits, std::vector<uint64_t>(3, 0)), doctest::Contains("no token may be chosen"),
                       Error);
  CHECK_THROWS_AS(sampler.sample(logits, std::vector<uint64_t>(2, ~uint64_t{0})), BugError);
}

TEST_CASE("NaN and infinite logits are an error that names the token, not a token") {
  for (const float bad : {kNaN, -kNaN, kInfinity}) {
    for (const size_t at : {0u, 17u, 999u}) {
      for (const float temperature : {0.0f, 1.0f}) {
        std::vector<float> logits = random_logits(1000, 1, 3);
        logits[at] = bad;
        SamplingParams p;
        p.temperature = temperature;
        Sampler sampler(p);
        const std::string name = "token " + std::to_string(at);
        CHECK_THROWS_WITH_AS(sampler.sample(logits), doctest::Contains(name.c_str()), Error);
        CHECK_THROWS_AS(top_logprobs(logits, 3), Error);
      }
    }
  }
  Sampler sampler{SamplingParams{}};
  CHECK_THROWS_AS(sampler.sample(std::vector<float>(5, -kInfinity)), Error);
  CHECK_THROWS_AS(sampler.sample(std::vector<float>{}), Error);
}

TEST_CASE("extreme but legal parameters and logits give a token") {
  std::vector<float> logits = random_logits(300, 1e30f, 8);
  logits.push_back(std::numeric_limits<float>::lowest());
  logits.push_back(-kInfinity);
  for (const float temperature : {0.0f, 1e-4f, 1.0f, 100.0f}) {
    for (const float top_p : {0.0f, 0.5f, 1.0f}) {
      SamplingParams p;
      p.temperature = temperature;
      p.top_p = top_p;
      p.repeat_penalty = 100;
      p.frequency_penalty = -100;
      Sampler sampler(p);
      for (int i = 0; i < 10; ++i) {
        const TokenChoice choice = sampler.sample(logits);
        CHECK(choice.id >= 0);
        CHECK(choice.id < 301);
        CHECK_FALSE(std::isnan(choice.logprob));
        sampler.accept(choice.id);
      }
    }
  }
}

TEST_CASE("logprobs are the log-softmax of the logits as given, whatever the parameters") {
  const std::vector<float> logits = random_logits(2000, 2, 6);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  SamplingParams p;
  p.temperature = 0.2f;
  p.logit_bias[7] = 500;
  const TokenChoice choice = Sampler(p).sample(logits);
  CHECK(choice.id == 7);
  CHECK(choice.logprob == doctest::Approx(static_cast<double>(logits[7]) - std::log(total)).epsilon(1e-6));

  const std::vector<TokenChoice> top = top_logprobs(logits, 20);
  REQUIRE(top.size() == 20);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < top.size(); ++i) {
    CHECK(top[i].id == order[i]);
    CHECK(top[i].logprob ==
          doctest::Approx(static_cast<double>(logits[static_cast<size_t>(order[i])]) - std::log(total)).epsilon(1e-6));
  }
  CHECK(top_logprobs(std::vector<float>{1, 2, 2}, 9).size() == 3);
  CHECK(top_logprobs(std::vector<float>{1, 2, 2}, 1)[0].id == 1);
  CHECK(top_logprobs(logits, 0).empty());
}

TEST_CASE("each bad parameter is refused by name and range") {
  const auto refused = [](auto change, const char* field) {
    SamplingParams p;
    change(p);
    CHECK_THROWS_WITH_AS(p.validate(100), doctest::Contains(field), Error);
    try {
      p.validate(100);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kUsage);
    }
  };
  for (const float bad : {-1.0f, kNaN, kInfinity, -kInfinity, 1e30f}) {
    CAPTURE(bad);
    refused([&](SamplingParams& p) { p.temperature = bad; }, "temperature");
    refused([&](SamplingParams& p) { p.top_p = bad; }, "top_p");
    refused([&](SamplingParams& p) { p.min_p = bad; }, "min_p");
    refused([&](SamplingParams& p) { p.repeat_penalty = bad; }, "repeat_penalty");
    refused([&](SamplingParams& p) { p.frequency_penalty = bad == -1.0f ? -101 : bad; }, "frequency_penalty");
    refused([&](SamplingParams& p) { p.presence_penalty = bad == -1.0f ? 1e9f : bad; }, "presence_penalty");
    refused([&](SamplingParams& p) { p.logit_bias[1] = bad == -1.0f || bad == -kInfinity ? 1e9f : bad; }, "logit_bias");
  }
  refused([](SamplingParams& p) { p.top_p = 2; }, "top_p is out of range; expected 0 to 1, got 2");
  refused([](SamplingParams& p) { p.top_k = -5; }, "top_k");
  refused([](SamplingParams& p) { p.repeat_penalty = 0; }, "repeat_penalty");
  refused([](SamplingParams& p) { p.repeat_last_n = -1; }, "repeat_last_n");
  refused([](SamplingParams& p) { p.logit_bias[100] = 1; }, "logit_bias");
  refused([](SamplingParams& p) { p.logit_bias[-1] = 1; }, "logit_bias");
  refused(
      [](SamplingParams& p) {
        for (int i = 0; i < 5000; ++i) p.logit_bias[i] = 0;
      },
      "at most 4096");
  SamplingParams fine;
  fine.logit_bias = {{0, -kInfinity}, {99, 100.0f}};
  fine.temperature = 0;
  CHECK_NOTHROW(fine.validate(100));
  CHECK_NOTHROW(SamplingParams{}.validate(0));
}

}  // namespace
