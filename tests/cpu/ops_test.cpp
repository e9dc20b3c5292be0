// Every operation through graph and backend: the reference against float64 oracles written out here, every instruction
// set against the reference.
#include <doctest/doctest.h>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "graph/graph.h"
#include "operation_alone.h"
#include "ops/add.h"
#include "ops/concat_rows.h"
#include "ops/embed_rows.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/take_rows.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

void check_close(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  double norm = 0;
  for (const double w : want) norm = std::max(norm, std::fabs(w));
  size_t worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) - want[i]) <= std::fabs(static_cast<double>(got[worst]) - want[worst])))
      worst = i;
  }
  if (want.empty()) return;
  CAPTURE(worst);
  CAPTURE(got[worst]);
  CAPTURE(want[worst]);
  CHECK(std::fabs(static_cast<double>(got[worst]) - want[worst]) <= tolerance * std::max(norm, 1e-30));
}

double silu(double x) { return x / (1 + std::exp(-x)); }

/// y[f] = row f of w [F, D] times x.
std::vector<double> times(const float* w, int64_t rows, int64_t columns, const std::vector<double>& x) {
  std::vector<double> y(static_cast<size_t>(rows), 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      y[static_cast<size_t>(r)] += static_cast<double>(w[r * columns + c]) * x[static_cast<size_t>(c)];
  }
  return y;
}

std::vector<double> ffn(const float* gate, const float* up, const float* down, int64_t width, int64_t hidden,
                        const std::vector<double>& x) {
  std::vector<double> g = times(gate, width, hidden, x);
  const std::vector<double> u = times(up, width, hidden, x);
  for (size_t f = 0; f < g.size(); ++f) g[f] = silu(g[f]) * u[f];
  return times(down, hidden, width, g);
}

std::vector<double> row_of(const Floats& x, int64_t t, int64_t n) {
  return {x.v.begin() + t * n, x.v.begin() + (t + 1) * n};
}

/// Every instruction set and thread counts that divide nothing evenly.
void each_backend(const std::function<void(Backend&)>& fn) {
  for (const std::string& isa : cpu_isa_names()) {
    for (const int n_threads : {1, 3}) {
      CAPTURE(isa);
      CAPTURE(n_threads);
      fn(*make_cpu_backend({n_threads, isa}));
    }
  }
}

}  // namespace

TEST_CASE("linear multiplies every token with every weight row") {
  each_backend([](Backend& backend) {
    for (const int64_t tokens : {0, 1, 2, 5, 33}) {
      for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {64, 2048}, {257, 96}}) {
        CAPTURE(tokens);
        CAPTURE(rows);
        CAPTURE(columns);
        const Floats x({tokens, columns}, 1), w({rows, columns}, 2);
        std::vector<double> want;
        for (int64_t t = 0; t < tokens; ++t) {
          for (const double y : times(w.v.data(), rows, columns, row_of(x, t, columns))) want.push_back(y);
        }
        if (tokens == 0) continue;
        check_close(run(backend, [&](Graph& g) { return linear(g, x.t, w.t); }), want, 2e-6);
      }
    }
  });
}

TEST_CASE("rms_norm divides by the root of the mean square") {
  each_backend([](Backend& backend) {
    for (const int64_t n : {1, 31, 32, 33, 1536, 7168}) {
      CAPTURE(n);
      const Floats x({5, n}, 3, 10.0F), w({n}, 4);
      std::vector<double> want;
      for (int64_t t = 0; t < 5; ++t) {
        double squares = 0;
        for (const double v : row_of(x, t, n)) squares += v * v;
        for (int64_t i = 0; i < n; ++i)
          want.push_back(static_cast<double>(x.v[static_cast<size_t>(t * n + i)]) /
                         std::sqrt(squares / static_cast<double>(n) + 1e-6) *
                         static_cast<double>(w.v[static_cast<size_t>(i)]));
      }
      check_close(run(backend, [&](Graph& g) { return rms_norm(g, x.t, w.t, 1e-6F); }), want, 1e-6);
    }
  });
}

TEST_CASE("layer_norm takes off the mean, divides by the deviation, scales and shifts") {
  each_backend([](Backend& backend) {
    for (const int64_t n : {1, 31, 128, 1536}) {
      CAPTURE(n);
      Floats x({5, n}, 3, 10.0F);
      for (float& v : x.v) v += 40.0F;
      const Floats w({n}, 4), b({n}, 5);
      std::vector<double> want;
      for (int64_t t = 0; t < 5; ++t) {
        const std::vector<double> row = row_of(x, t, n);
        double mean = 0, variance = 0;
        for (const double v : row) mean += v / static_cast<double>(n);
        for (const double v : row) variance += (v - mean) * (v - mean) / static_cast<double>(n);
        for (size_t i = 0; i < row.size(); ++i)
          want.push_back((row[i] - mean) / std::sqrt(variance + 1e-6) * static_cast<double>(w.v[i]) +
                         static_cast<double>(b.v[i]));
      }
      check_close(run(backend, [&](Graph& g) { return layer_norm(g, x.t, w.t, b.t, 1e-6F); }), want, 1e-6);
    }
  });
}

TEST_CASE("add, take_rows and embed_rows move the right rows") {
  each_backend([](Backend& backend) {
    const Floats a({3, 37}, 5), b({3, 37}, 6);
    const Ints rows({2}, {2, 0});
    std::vector<double> sum, taken;
    for (size_t i = 0; i < a.v.size(); ++i) sum.push_back(static_cast<double>(a.v[i] + b.v[i]));
    for (const int64_t r : {2, 0}) {
      for (const double v : row_of(a, r, 37)) taken.push_back(v);
    }
    check_close(run(backend, [&](Graph& g) { return add(g, a.t, b.t); }), sum, 0);
    check_close(run(backend, [&](Graph& g) { return take_rows(g, a.t, rows.t); }), taken, 0);
    check_close(run(backend, [&](Graph& g) { return embed_rows(g, a.t, rows.t); }), taken, 0);
  });
}

TEST_CASE("concat_rows puts rows side by side") {
  each_backend([](Backend& backend) {
    const Floats a({5, 3}, 5), b({5, 34}, 6);
    std::vector<double> want;
    for (int64_t t = 0; t < 5; ++t) {
      for (const double v : row_of(a, t, 3)) want.push_back(v);
      for (const double v : row_of(b, t, 34)) want.push_back(v);
    }
    check_close(run(backend, [&](Graph& g) { return concat_rows(g, a.t, b.t); }), want, 0);
  });
}

TEST_CASE("gated_ffn is down(silu(gate) * up)") {
  each_backend([](Backend& backend) {
    for (const int64_t tokens : {1, 7}) {
      const int64_t hidden = 65, width = 130;
      const Floats x({tokens, hidden}, 7), gate({width, hidden}, 8, 0.3F), up({width, hidden}, 9, 0.3F),
          down({hidden, width}, 10, 0.3F);
      std::vector<double> want;
      for (int64_t t = 0; t < tokens; ++t) {
        for (const double y : ffn(gate.v.data(), up.v.data(), down.v.data(), width, hidden, row_of(x, t, hidden)))
          want.push_back(y);
      }
      check_close(run(backend, [&](Graph& g) { return gated_ffn(g, x.t, {gate.t, up.t, down.t}); }), want, 5e-6);
    }
  });
}

TEST_CASE("moe_ffn is the weighted sum of the chosen experts and the shared one") {
  each_backend([](Backend& backend) {
    for (const bool has_shared : {false, true}) {
      for (const int64_t tokens : {1, 2, 9, 40}) {
        CAPTURE(has_shared);
        CAPTURE(tokens);
        const int64_t hidden = 33, width = 50, n_experts = 7, used = 3, shared_width = 77;
        const Floats x({tokens, hidden}, 11), gate({n_experts, width, hidden}, 12, 0.3F),
            up({n_experts, width, hidden}, 13, 0.3F), down({n_experts, hidden, width}, 14, 0.3F);
        const Floats sgate({shared_width, hidden}, 15, 0.3F), sup({shared_width, hidden}, 16, 0.3F),
            sdown({hidden, shared_width}, 17, 0.3F), weights({tokens, used}, 18);
        std::vector<int32_t> chosen;
        std::mt19937 rng(19);
        for (int64_t t = 0; t < tokens; ++t) {  // expert 6 stays without tokens
          const int32_t first = static_cast<int32_t>(rng() % 6);
          for (int32_t k = 0; k < used; ++k) chosen.push_back((first + k) % 6);
        }
        const Ints ids({tokens, used}, chosen);
        std::vector<double> want;
        for (int64_t t = 0; t < tokens; ++t) {
          std::vector<double> y(static_cast<size_t>(hidden), 0.0);
          if (has_shared)
            y = ffn(sgate.v.data(), sup.v.data(), sdown.v.data(), shared_width, hidden, row_of(x, t, hidden));
          for (int64_t k = 0; k < used; ++k) {
            const int64_t e = ids.v[static_cast<size_t>(t * used + k)];
            const std::vector<double> z = ffn(gate.v.data() + e * width * hidden, up.v.data() + e * width * hidden,
                                              down.v.data() + e * width * hidden, width, hidden, row_of(x, t, hidden));
            for (size_t d = 0; d < y.size(); ++d)
              y[d] += static_cast<double>(weights.v[static_cast<size_t>(t * used + k)]) * z[d];
          }
          want.insert(want.end(), y.begin(), y.end());
        }
        const GatedFfnWeights shared = has_shared ? GatedFfnWeights{sgate.t, sup.t, sdown.t} : GatedFfnWeights{};
        check_close(run(backend,
                        [&](Graph& g) {
                          return moe_ffn(g, x.t, {ids.t, weights.t}, {gate.t, up.t, down.t}, shared);
                        }),
                    want, 5e-6);
      }
    }
  });
}

TEST_CASE("route_experts follows each generation's rule") {
  const std::vector<float> logits = {0.1F, 2.0F, -1.0F, 1.9F, 0.5F, 1.0F, 1.5F, 1.4F};
  auto routes = [&](const RouterParams& p, std::vector<float> bias) {
    const auto backend = make_cpu_backend({1, "reference"});
    std::vector<float> l = logits;
    const Tensor lt(DType::kF32, {1, 8}, l.data());
    const Tensor bt = bias.empty() ? Tensor() : Tensor(DType::kF32, {8}, bias.data());
    Graph g;
    const ExpertRoutes r = route_experts(g, lt, bt, p);
    g.keep(r.ids), g.keep(r.weights);
    Executor executor(*backend);
    executor.run(g);
    const Tensor ids = g.resolve(r.ids), w = g.resolve(r.weights);
    return std::make_pair(std::vector<int32_t>(ids.as<int32_t>(), ids.as<int32_t>() + p.n_used),
                          std::vector<float>(w.as<float>(), w.as<float>() + p.n_used));
  };
  double denominator = 0;
  for (const float z : logits) denominator += std::exp(static_cast<double>(z));

  SUBCASE("softmax, best experts, weights as they are") {
    RouterParams p;
    p.n_used = 3;
    const auto [ids, weights] = routes(p, {});
    CHECK(ids == std::vector<int32_t>{1, 3, 6});
    CHECK(static_cast<double>(weights[0]) == doctest::Approx(std::exp(2.0) / denominator));
  }
  SUBCASE("groups ranked by their best expert") {
    RouterParams p;
    p.n_used = 2, p.n_groups = 4, p.n_groups_used = 1, p.scale = 16;
    const auto [ids, weights] = routes(p, {});
    CHECK(ids == std::vector<int32_t>{1, 0});  // group 0 has the best expert, though group 3 has the best pair
    CHECK(static_cast<double>(weights[1]) == doctest::Approx(16 * std::exp(0.1) / denominator).epsilon(1e-5));
  }
  SUBCASE("groups ranked by the sum of their two best, normalized, bias only for the choice") {
    RouterParams p;
    p.n_used = 2, p.n_groups = 4, p.n_groups_used = 1, p.score = RouterScore::kSigmoid,
    p.group_rank = GroupRank::kSumOfTwoBest, p.normalize = true, p.scale = 2.5F;
    CHECK(routes(p, {}).first == std::vector<int32_t>{6, 7});
    const auto [ids, weights] = routes(p, {0, 0, 5, 5, 0, 0, 0, 0});
    CHECK(ids == std::vector<int32_t>{3, 2});
    const double s3 = 1 / (1 + std::exp(-1.9)), s2 = 1 / (1 + std::exp(1.0));
    CHECK(static_cast<double>(weights[0]) == doctest::Approx(2.5 * s3 / (s3 + s2)).epsilon(1e-5));
  }
  SUBCASE("ties go to the lower id") {
    RouterParams p;
    p.n_used = 8;
    std::vector<float> equal(8, 1.0F);
    const auto backend = make_cpu_backend({1, "reference"});
    Graph g;
    const ExpertRoutes r = route_experts(g, Tensor(DType::kF32, {1, 8}, equal.data()), {}, p);
    g.keep(r.ids);
    Executor executor(*backend);
    executor.run(g);
    const int32_t* ids = g.resolve(r.ids).as<int32_t>();
    CHECK(std::vector<int32_t>(ids, ids + 8) == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  }
}

TEST_CASE("rotations turn pairs by position times frequency and leave the rest") {
  each_backend([](Backend& backend) {
    for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
      const Ints positions({2}, {0, 100000});
      std::vector<float> frequencies = {1.0F, 0.01F, 0.5F};
      const Tensor f(DType::kF32, {3}, frequencies.data());
      const Floats x({2, 2, 8}, 21);
      std::vector<double> want(x.v.begin(), x.v.end());
      for (int64_t t = 0; t < 2; ++t) {
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t i = 0; i < 3; ++i) {
            double* head = want.data() + (t * 2 + h) * 8 + 2;
            double& a = head[pairing == RopePairing::kAdjacent ? 2 * i : i];
            double& b = head[pairing == RopePairing::kAdjacent ? 2 * i + 1 : i + 3];
            const double angle =
                positions.v[static_cast<size_t>(t)] * static_cast<double>(frequencies[static_cast<size_t>(i)]);
            const double a0 = a, b0 = b;
            a = a0 * std::cos(angle) - b0 * std::sin(angle);
            b = a0 * std::sin(angle) + b0 * std::cos(angle);
          }
        }
      }
      check_close(
          run(backend, [&](Graph& g) { return rotate_heads(g, x.t, rope_table(g, positions.t, f), 2, pairing); }), want,
          1e-6);
    }
  });
}

TEST_CASE("an unknown instruction set is refused with the choices") {
  CHECK_THROWS_WITH_AS(make_cpu_backend({1, "vax"}), doctest::Contains("expected one of auto"), Error);
}
