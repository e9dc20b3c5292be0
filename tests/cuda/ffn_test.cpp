// Feed-forward networks and mixtures of experts against float64.
#include <doctest/doctest.h>

#include <cstring>

#include "cuda/matmul_fixture.h"

using namespace fathom;
using namespace fathom::test;

namespace {

struct Network {
  TestWeights gate, up, down;

  Network(DType in, DType out, int64_t n, int64_t hidden, int64_t width, std::mt19937& rng)
      : gate(in, n, width, hidden, rng), up(in, n, width, hidden, rng), down(out, n, hidden, width, rng) {}
  GatedFfnWeights tensors() const { return {gate.tensor(), up.tensor(), down.tensor()}; }

  /// out[d] of matrix e for x, and how far off it may be: roundings of the sums, and rounding of the hidden values to
  /// int8, where a value close to the middle of two steps may fall to either side.
  void expected(int64_t e, const float* x, std::vector<double>& out, std::vector<double>& tolerance) const {
    const int64_t hidden = gate.k, width = gate.rows;
    std::vector<float> act(x, x + hidden);
    if (gate.quantized()) act = rounded(act);
    std::vector<float> h(static_cast<size_t>(width));
    for (int64_t f = 0; f < width; ++f) {
      const double g = product(gate.row(e, f), act.data(), hidden).value;
      h[static_cast<size_t>(f)] =
          static_cast<float>(g / (1 + std::exp(-g)) * product(up.row(e, f), act.data(), hidden).value);
    }
    float largest = 0;
    for (const float v : h) largest = std::max(largest, std::fabs(v));
    if (down.quantized()) h = rounded(h);
    out.resize(static_cast<size_t>(hidden));
    tolerance.resize(static_cast<size_t>(hidden));
    for (int64_t d = 0; d < hidden; ++d) {
      const Product p = product(down.row(e, d), h.data(), width);
      float weight = 0;
      for (int64_t f = 0; f < width; ++f) weight = std::max(weight, std::fabs(down.row(e, d)[f]));
      out[static_cast<size_t>(d)] = p.value;
      tolerance[static_cast<size_t>(d)] = 2e-5 * p.norm + (down.quantized() ? 2.0 * weight * largest / 127 : 0);
    }
  }
};

struct MoeProblem {
  int64_t n_tokens, n_used, n_experts, hidden;
  std::vector<float> x, weights;
  std::vector<int32_t> ids;

  MoeProblem(int64_t n_tokens_, int64_t n_used_, int64_t n_experts_, int64_t hidden_, std::mt19937& rng)
      : n_tokens(n_tokens_), n_used(n_used_), n_experts(n_experts_), hidden(hidden_) {
    x = random_floats(static_cast<size_t>(n_tokens * hidden), rng, 0.3f);
    weights = random_floats(static_cast<size_t>(n_tokens * n_used), rng);
    ids.resize(static_cast<size_t>(n_tokens * n_used));
    // Expert 1 gets no token, and sometimes a token chooses one twice.
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(rng() % static_cast<unsigned>(n_experts));
      if (id == 1) id = 0;
    }
  }
  /// Tokens [first, first + count) alone.
  MoeProblem part(int64_t first, int64_t count) const {
    MoeProblem p = *this;
    p.n_tokens = count;
    p.x.assign(x.begin() + first * hidden, x.begin() + (first + count) * hidden);
    p.weights.assign(weights.begin() + first * n_used, weights.begin() + (first + count) * n_used);
    p.ids.assign(ids.begin() + first * n_used, ids.begin() + (first + count) * n_used);
    return p;
  }
};

std::vector<float> run_moe(const MoeProblem& p, const Network& experts, const Network* shared,
                           const std::vector<float>* add = nullptr) {
  const DeviceArray<float> x(p.x), weights(p.weights);
  const DeviceArray<int32_t> ids(p.ids);
  const DeviceArray<float> out(p.x.size());
  const Shape shape{p.n_tokens, p.hidden}, routes{p.n_tokens, p.n_used};
  MoeFfnArgs args{x.tensor(DType::kF32, shape),
                  ids.tensor(DType::kI32, routes),
                  weights.tensor(DType::kF32, routes),
                  experts.tensors(),
                  {},
                  out.tensor(DType::kF32, shape)};
  if (shared != nullptr) args.shared = shared->tensors();
  cuda::check_weights(args);
  const TestContext context(cuda::moe_ffn_workspace(args));
  cuda::MatmulOptions options;
  const DeviceArray<float> added(add != nullptr ? *add : std::vector<float>{});
  if (add != nullptr) options.add = added.tensor(DType::kF32, shape);
  cuda::moe_ffn(args, context.context(), options);
  context.check();
  return out.download();
}

void check_moe(const MoeProblem& p, const Network& experts, const Network* shared) {
  const std::vector<float> got = run_moe(p, experts, shared);
  int wrong = 0;
  std::vector<double> y, tolerance;
  for (int64_t t = 0; t < p.n_tokens; ++t) {
    std::vector<double> sum(static_cast<size_t>(p.hidden), 0), allowed(static_cast<size_t>(p.hidden), 0);
    for (int64_t j = 0; j <= p.n_used; ++j) {
      if (j == p.n_used && shared == nullptr) continue;
      const double weight = j == p.n_used ? 1 : static_cast<double>(p.weights[static_cast<size_t>(t * p.n_used + j)]);
      (j == p.n_used ? *shared : experts)
          .expected(j == p.n_used ? 0 : p.ids[static_cast<size_t>(t * p.n_used + j)], p.x.data() + t * p.hidden, y,
                    tolerance);
      for (size_t d = 0; d < y.size(); ++d) {
        sum[d] += weight * y[d];
        allowed[d] += std::fabs(weight) * tolerance[d];
      }
    }
    for (size_t d = 0; d < sum.size(); ++d) {
      const float v = got[static_cast<size_t>(t * p.hidden) + d];
      if (!(std::fabs(v - sum[d]) <= allowed[d]) && ++wrong == 1) {
        FAIL_CHECK("token " << t << " value " << d << ": expected " << sum[d] << " within " << allowed[d] << ", got "
                            << v);
      }
    }
  }
  CHECK(wrong == 0);
}

std::vector<float> run_ffn(const Network& n, const std::vector<float>& x, int64_t n_tokens) {
  const DeviceArray<float> device_x(x);
  const DeviceArray<float> out(x.size());
  const Shape shape{n_tokens, n.gate.k};
  const GatedFfnArgs args{device_x.tensor(DType::kF32, shape), n.tensors(), out.tensor(DType::kF32, shape)};
  cuda::check_weights(args);
  const TestContext context(cuda::gated_ffn_workspace(args));
  cuda::gated_ffn(args, context.context());
  context.check();
  return out.download();
}

std::string name_of(DType type) { return std::string(dtype_name(type)); }
int64_t block_of(DType type) { return std::max(32, dtype_info(type).block_elements); }

}  // namespace

TEST_CASE("a mixture of experts agrees with float64 for every type, few tokens and many") {
  unsigned seed = 100;
  for (const DType type : weight_types()) {
    const int64_t hidden = block_of(type), width = block_of(type);
    std::mt19937 rng(++seed);
    const Network experts(type, type, 3, hidden, width, rng),
        shared(type, type, 1, hidden, width < 256 ? 2 * width : width, rng);
    for (const int64_t n_tokens : {1, 3, 18}) {
      CAPTURE(name_of(type));
      CAPTURE(n_tokens);
      CAPTURE(seed);
      check_moe(MoeProblem(n_tokens, 2, 3, hidden, rng), experts, n_tokens == 3 ? nullptr : &shared);
    }
  }
}

TEST_CASE("shared experts of other types and widths, odd sizes, no shared experts, one expert for all") {
  std::mt19937 rng(200);
  const int64_t hidden = 96;
  const Network experts(DType::kQ4_0, DType::kQ5_0, 7, hidden, 64, rng);
  const Network same_in(DType::kQ4_0, DType::kQ8_0, 1, hidden, 160, rng),
      same_out(DType::kQ8_0, DType::kQ5_0, 1, hidden, 32, rng), plain(DType::kF32, DType::kF16, 1, hidden, 45, rng);
  const Network f_experts(DType::kBF16, DType::kF32, 4, hidden, 37, rng);
  for (const int64_t n_tokens : {1, 2, 7, 16, 17, 40}) {
    CAPTURE(n_tokens);
    const MoeProblem p(n_tokens, 3, 7, hidden, rng);
    for (const Network* shared : {&same_in, &same_out, &plain, static_cast<const Network*>(nullptr)})
      check_moe(p, experts, shared);
    check_moe(MoeProblem(n_tokens, 2, 4, hidden, rng), f_experts, &same_in);
    MoeProblem one = p;
    std::fill(one.ids.begin(), one.ids.end(), 6);
    check_moe(one, experts, &plain);
  }
}

TEST_CASE("experts and shared experts whose down matrices are of two types, as converters pair them") {
  unsigned seed = 210;
  for (const auto& [routed, shared_type] : {std::pair{DType::kQ8_0, DType::kQ6_K},
                                            {DType::kQ5_1, DType::kQ5_K},
                                            {DType::kQ5_0, DType::kQ4_K},
                                            {DType::kIQ4_NL, DType::kIQ4_XS},
                                            {DType::kQ4_K, DType::kQ6_K}}) {
    std::mt19937 rng(++seed);
    const int64_t hidden = 256, width = routed == DType::kQ4_K ? 256 : 96;
    const Network experts(DType::kQ4_K, routed, 5, hidden, width, rng),
        shared(DType::kQ4_K, shared_type, 1, hidden, 512, rng);
    for (const int64_t n_tokens : {1, 3, 16, 18}) {
      CAPTURE(name_of(routed));
      CAPTURE(n_tokens);
      check_moe(MoeProblem(n_tokens, 2, 5, hidden, rng), experts, &shared);
    }
  }
}

TEST_CASE("experts of V4's files beside shared experts of Q8_0") {
  unsigned seed = 220;
  for (const auto& [gate, down] : {std::pair{DType::kMXFP4, DType::kMXFP4},
                                   {DType::kQ4_K, DType::kQ6_K},
                                   {DType::kQ4_K, DType::kQ4_K},
                                   {DType::kIQ2_XXS, DType::kQ2_K}}) {
    std::mt19937 rng(++seed);
    const int64_t hidden = 256, width = gate == DType::kMXFP4 ? 96 : 256;
    const Network experts(gate, down, 5, hidden, width, rng), shared(DType::kQ8_0, DType::kQ8_0, 1, hidden, 288, rng);
    for (const int64_t n_tokens : {1, 3, 16, 18}) {
      CAPTURE(name_of(gate));
      CAPTURE(name_of(down));
      CAPTURE(n_tokens);
      check_moe(MoeProblem(n_tokens, 2, 5, hidden, rng), experts, &shared);
    }
  }
}

TEST_CASE("many tokens with few experts fill several tiles of an expert") {
  std::mt19937 rng(201);
  const Network experts(DType::kQ8_0, DType::kQ8_0, 3, 32, 32, rng);
  check_moe(MoeProblem(150, 2, 3, 32, rng), experts, nullptr);
  check_moe(MoeProblem(65, 1, 3, 32, rng), experts, &experts);
}

TEST_CASE("more routes than threads keep their order: 200 tokens, 8 of 40 experts") {
  std::mt19937 rng(202);
  const Network experts(DType::kQ4_0, DType::kQ4_0, 40, 32, 32, rng);
  check_moe(MoeProblem(200, 8, 40, 32, rng), experts, nullptr);
}

TEST_CASE("up to 16 tokens a step, a token's mixture is the same bits alone and in any company") {
  std::mt19937 rng(203);
  for (const DType type : {DType::kQ4_K, DType::kQ8_0, DType::kF16}) {
    CAPTURE(name_of(type));
    const int64_t hidden = 256;
    const Network experts(type, type, 6, hidden, 256, rng), shared(type, DType::kQ5_0, 1, hidden, 96, rng);
    const MoeProblem p(16, 3, 6, hidden, rng);
    const std::vector<float> all = run_moe(p, experts, &shared);
    for (const int64_t count : {1, 2, 9}) {
      for (const int64_t first : {int64_t{0}, 16 - count}) {
        const std::vector<float> some = run_moe(p.part(first, count), experts, &shared);
        CHECK(std::memcmp(some.data(), all.data() + first * hidden, some.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("a mixture adds what it is given") {
  std::mt19937 rng(204);
  const Network experts(DType::kQ8_0, DType::kQ8_0, 3, 64, 32, rng);
  for (const int64_t n_tokens : {2, 19}) {
    const MoeProblem p(n_tokens, 2, 3, 64, rng);
    const std::vector<float> add = random_floats(p.x.size(), rng), plain = run_moe(p, experts, nullptr),
                             more = run_moe(p, experts, nullptr, &add);
    int wrong = 0;
    for (size_t i = 0; i < plain.size(); ++i) wrong += more[i] != plain[i] + add[i];
    CHECK(wrong == 0);
  }
}

TEST_CASE("a gated network agrees with float64 and leaves nothing for no tokens") {
  unsigned seed = 300;
  for (const auto& [in, out] : {std::pair{DType::kQ4_K, DType::kQ6_K},
                                {DType::kQ8_0, DType::kQ8_0},
                                {DType::kF32, DType::kF32},
                                {DType::kF16, DType::kQ4_0}}) {
    std::mt19937 rng(++seed);
    const int64_t hidden = 256, width = out == DType::kF32 ? 101 : 256;
    const Network n(in, out, 1, hidden, width, rng);
    for (const int64_t n_tokens : {0, 1, 5, 16, 33}) {
      CAPTURE(name_of(in));
      CAPTURE(n_tokens);
      const std::vector<float> x = random_floats(static_cast<size_t>(n_tokens * hidden), rng, 0.3f),
                               got = run_ffn(n, x, n_tokens);
      int wrong = 0;
      std::vector<double> y, tolerance;
      for (int64_t t = 0; t < n_tokens; ++t) {
        n.expected(0, x.data() + t * hidden, y, tolerance);
        for (int64_t d = 0; d < hidden; ++d)
          wrong += !(std::fabs(got[static_cast<size_t>(t * hidden + d)] - y[static_cast<size_t>(d)]) <=
                     tolerance[static_cast<size_t>(d)]);
      }
      CHECK(wrong == 0);
    }
  }
}
