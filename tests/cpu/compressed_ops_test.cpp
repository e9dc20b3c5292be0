// V4's operations against float64 oracles written out here: hyper-connections, groups, limits, routes by token id,
// compressed rows and the attention over them. Every instruction set and thread counts that divide nothing evenly.
#include <doctest/doctest.h>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "core/quant/dequantize.h"
#include "cpu/cpu_backend.h"
#include "cpu/store_row.h"
#include "graph/graph.h"
#include "operation_alone.h"
#include "ops/compressed_attention.h"
#include "ops/hyper_connections.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/store_latent.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

void check_close(const std::vector<float>& got, const std::vector<double>& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  double norm = 1e-30, worst = 0;
  for (const double w : want) norm = std::max(norm, std::fabs(w));
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
    worst = std::isfinite(difference) ? std::max(worst, difference) : HUGE_VAL;
  }
  CHECK(worst <= tolerance * norm);
}

void each_backend(const std::function<void(Backend&)>& fn) {
  for (const std::string& isa : cpu_isa_names()) {
    for (const int n_threads : {1, 3}) {
      CAPTURE(isa);
      CAPTURE(n_threads);
      fn(*make_cpu_backend({n_threads, isa}));
    }
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

constexpr int64_t kStreams = 4, kMixes = 24;
constexpr double kEps = 1e-6;

struct Mixing {
  std::vector<double> pre, post;
  std::vector<std::vector<double>> matrix;  ///< [from][to]
};

/// One token's coefficients, rule by rule.
Mixing mixing_of(const float* streams, const Floats& fn, const Floats& base, const Floats& scale, int64_t width,
                 int iterations) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += static_cast<double>(streams[i]) * streams[i];
  const double r = 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
  std::vector<double> m;
  for (int64_t k = 0; k < fn.t.dim(0); ++k) {
    double dot = 0;
    for (int64_t i = 0; i < width; ++i)
      dot += static_cast<double>(fn.v[static_cast<size_t>(k * width + i)]) * static_cast<double>(streams[i]);
    const int64_t part = std::min<int64_t>(k / kStreams, 2);
    m.push_back(dot * r * static_cast<double>(scale.v[static_cast<size_t>(part)]) +
                static_cast<double>(base.v[static_cast<size_t>(k)]));
  }
  Mixing x;
  for (size_t i = 0; i < kStreams; ++i) x.pre.push_back(sigmoid(m[i]) + kEps);
  if (fn.t.dim(0) == kStreams) return x;
  for (size_t i = 0; i < kStreams; ++i) x.post.push_back(2 * sigmoid(m[kStreams + i]));
  x.matrix.assign(kStreams, std::vector<double>(kStreams));
  for (size_t i = 0; i < kStreams; ++i) {
    double total = 0;
    for (size_t k = 0; k < kStreams; ++k) total += std::exp(m[2 * kStreams + i * kStreams + k]);
    for (size_t k = 0; k < kStreams; ++k) x.matrix[i][k] = std::exp(m[2 * kStreams + i * kStreams + k]) / total + kEps;
  }
  for (int round = 0; round < iterations; ++round) {
    for (size_t i = 0; i < kStreams && round > 0; ++i) {
      const double total = std::accumulate(x.matrix[i].begin(), x.matrix[i].end(), kEps);
      for (double& c : x.matrix[i]) c /= total;
    }
    for (size_t k = 0; k < kStreams; ++k) {
      double total = kEps;
      for (size_t i = 0; i < kStreams; ++i) total += x.matrix[i][k];
      for (size_t i = 0; i < kStreams; ++i) x.matrix[i][k] /= total;
    }
  }
  return x;
}

}  // namespace

TEST_CASE("streams are collapsed to a sublayer's input and its output is spread over them") {
  each_backend([](Backend& backend) {
    for (const int64_t d : {1, 17, 96, 1024}) {
      for (const int64_t n_tokens : {1, 2, 7}) {
        CAPTURE(d);
        CAPTURE(n_tokens);
        const int64_t width = kStreams * d;
        const Floats streams({n_tokens, width}, 1, 2.0F), y({n_tokens, d}, 2), base({kMixes}, 4), scale({3}, 5),
            fn({kMixes, width}, 3, 1 / std::sqrt(static_cast<float>(width)));
        const HyperConnectionWeights w{fn.t, base.t, scale.t};
        const HyperConnectionParams params{static_cast<float>(kEps), static_cast<float>(kEps), 20};
        std::vector<double> inputs, outputs;
        for (int64_t t = 0; t < n_tokens; ++t) {
          const float* h = streams.v.data() + t * width;
          const Mixing m = mixing_of(h, fn, base, scale, width, 20);
          for (int64_t i = 0; i < d; ++i) {
            double sum = 0;
            for (int64_t s = 0; s < kStreams; ++s)
              sum += m.pre[static_cast<size_t>(s)] * static_cast<double>(h[s * d + i]);
            inputs.push_back(sum);
          }
          for (size_t to = 0; to < kStreams; ++to) {
            for (int64_t i = 0; i < d; ++i) {
              double sum = m.post[to] * static_cast<double>(y.v[static_cast<size_t>(t * d + i)]);
              for (size_t from = 0; from < kStreams; ++from)
                sum += m.matrix[from][to] * static_cast<double>(h[static_cast<int64_t>(from) * d + i]);
              outputs.push_back(sum);
            }
          }
        }
        check_close(run(backend, [&](Graph& g) { return collapse_streams(g, streams.t, w, kStreams, params).x; }),
                    inputs, 4e-6);
        check_close(run(backend,
                        [&](Graph& g) {
                          const CollapsedStreams c = collapse_streams(g, streams.t, w, kStreams, params);
                          return expand_streams(g, streams.t, y.t, c.mixing);
                        }),
                    outputs, 4e-6);
      }
    }
  });
}

TEST_CASE("before the head streams are collapsed with input coefficients alone") {
  each_backend([](Backend& backend) {
    const int64_t d = 96, n_tokens = 3, width = kStreams * d;
    const Floats streams({n_tokens, width}, 1), base({kStreams}, 4), scale({1}, 5), fn({kStreams, width}, 3, 0.05F);
    std::vector<double> want;
    for (int64_t t = 0; t < n_tokens; ++t) {
      const float* h = streams.v.data() + t * width;
      const Mixing m = mixing_of(h, fn, base, scale, width, 0);
      for (int64_t i = 0; i < d; ++i) {
        double sum = 0;
        for (int64_t s = 0; s < kStreams; ++s) sum += m.pre[static_cast<size_t>(s)] * static_cast<double>(h[s * d + i]);
        want.push_back(sum);
      }
    }
    check_close(run(backend,
                    [&](Graph& g) {
                      return collapse_streams_for_head(g, streams.t, {fn.t, base.t, scale.t}, kStreams,
                                                       {static_cast<float>(kEps), static_cast<float>(kEps), 0});
                    }),
                want, 4e-6);
  });
}

TEST_CASE("a grouped product is each group's own, to the last bit") {
  each_backend([](Backend& backend) {
    for (const int64_t n_groups : {1, 2, 8}) {
      for (const int64_t rows : {1, 40, 96}) {
        const int64_t n_tokens = 3, width = 64;
        const Floats x({n_tokens, n_groups * width}, 1), w({n_groups * rows, width}, 2);
        const std::vector<float> got = run(backend, [&](Graph& g) { return grouped_linear(g, x.t, w.t); });
        for (int64_t group = 0; group < n_groups; ++group) {
          Floats part({n_tokens, width}, 0);
          for (int64_t t = 0; t < n_tokens; ++t)
            std::copy_n(x.v.data() + (t * n_groups + group) * width, width, part.v.data() + t * width);
          const std::vector<float> own =
              run(backend, [&](Graph& g) { return linear(g, part.t, w.t.slice(group * rows, rows)); });
          for (int64_t t = 0; t < n_tokens; ++t) {
            CHECK(std::equal(own.begin() + t * rows, own.begin() + (t + 1) * rows,
                             got.begin() + (t * n_groups + group) * rows));
          }
        }
      }
    }
  });
}

TEST_CASE("the inverse rotation undoes the rotation, and a norm without weights has ones") {
  each_backend([](Backend& backend) {
    const Floats x({5, 3, 40}, 1), frequencies({8}, 2, 0.1F), ones({40}, 3);
    std::vector<float> one(40, 1.0F);
    const Tensor weight(DType::kF32, {40}, one.data());
    const Ints positions({5}, {0, 1, 7, 1000, 100000});
    const std::vector<float> back = run(backend, [&](Graph& g) {
      const Tensor table = rope_table(g, positions.t, frequencies.t);
      return rotate_heads(g, rotate_heads(g, x.t, table, 24, RopePairing::kAdjacent), table, 24, RopePairing::kAdjacent,
                          true);
    });
    check_close(back, {x.v.begin(), x.v.end()}, 1e-6);
    const Tensor rows = x.t.reshaped({15, 40});
    CHECK(run(backend, [&](Graph& g) { return rms_norm(g, rows, {}, 1e-6F); }) ==
          run(backend, [&](Graph& g) { return rms_norm(g, rows, weight, 1e-6F); }));
  });
}

TEST_CASE("a table gives a token its experts, with weights from their scores") {
  each_backend([](Backend& backend) {
    const Floats logits({3, 6}, 1);
    const Ints table({4, 2}, {5, 0, 1, 2, 3, 3, 4, 5}), ids({3}, {2, 0, 3});
    const RouterParams params{.n_used = 2, .score = RouterScore::kSqrtSoftplus, .normalize = true, .scale = 1.5F};
    CHECK(run<int32_t>(backend, [&](Graph& g) {
            return route_experts_by_id(g, logits.t, table.t, ids.t, params).ids;
          }) == std::vector<int32_t>{3, 3, 5, 0, 4, 5});
    std::vector<double> want;
    for (const auto& [t, experts] :
         {std::pair<size_t, std::pair<size_t, size_t>>{0, {3, 3}}, {1, {5, 0}}, {2, {4, 5}}}) {
      const auto score = [&, t = t](size_t e) {
        return std::sqrt(std::log1p(std::exp(static_cast<double>(logits.v[t * 6 + e]))));
      };
      const double a = score(experts.first), b = score(experts.second);
      want.push_back(1.5 * a / (a + b)), want.push_back(1.5 * b / (a + b));
    }
    check_close(
        run(backend, [&](Graph& g) { return route_experts_by_id(g, logits.t, table.t, ids.t, params).weights; }), want,
        1e-6);
  });
}

TEST_CASE("hidden values are limited where a limit is given, the experts' and the shared network's own") {
  each_backend([](Backend& backend) {
    const int64_t d = 64, f = 32, n_tokens = 3, n_experts = 4;
    const Floats x({n_tokens, d}, 1), gate({n_experts, f, d}, 2, 0.3F), up({n_experts, f, d}, 3, 0.3F),
        down({n_experts, d, f}, 4), shared_gate({f, d}, 5, 0.3F), shared_up({f, d}, 6, 0.3F), shared_down({d, f}, 7);
    const Ints ids({n_tokens, 1}, {0, 3, 3});
    Floats weights({n_tokens, 1}, 8);
    const float limit = 0.5F, shared_limit = 1.25F;
    const auto network = [&](const float* g, const float* u, const float* w, const float* in, float most) {
      std::vector<double> hidden, out;
      for (int64_t i = 0; i < f; ++i) {
        double a = 0, b = 0;
        for (int64_t k = 0; k < d; ++k) {
          a += static_cast<double>(g[i * d + k]) * static_cast<double>(in[k]);
          b += static_cast<double>(u[i * d + k]) * static_cast<double>(in[k]);
        }
        const auto limit_of = static_cast<double>(most);
        a = std::min(a, limit_of);
        hidden.push_back(a * sigmoid(a) * std::clamp(b, -limit_of, limit_of));
      }
      for (int64_t k = 0; k < d; ++k) {
        double sum = 0;
        for (int64_t i = 0; i < f; ++i) sum += static_cast<double>(w[k * f + i]) * hidden[static_cast<size_t>(i)];
        out.push_back(sum);
      }
      return out;
    };
    std::vector<double> want, want_plain;
    for (int64_t t = 0; t < n_tokens; ++t) {
      const float* in = x.v.data() + t * d;
      const int64_t e = ids.v[static_cast<size_t>(t)];
      const std::vector<double> routed = network(gate.v.data() + e * f * d, up.v.data() + e * f * d,
                                                 down.v.data() + e * f * d, in, limit),
                                shared = network(shared_gate.v.data(), shared_up.v.data(), shared_down.v.data(), in,
                                                 shared_limit);
      for (size_t k = 0; k < static_cast<size_t>(d); ++k)
        want.push_back(static_cast<double>(weights.v[static_cast<size_t>(t)]) * routed[k] + shared[k]);
      want_plain.insert(want_plain.end(), shared.begin(), shared.end());
    }
    check_close(run(backend,
                    [&](Graph& g) {
                      return moe_ffn(g, x.t, {ids.t, weights.t}, {gate.t, up.t, down.t},
                                     {shared_gate.t, shared_up.t, shared_down.t}, limit, shared_limit);
                    }),
                want, 4e-6);
    GatedFfnArgs plain{x.t, {shared_gate.t, shared_up.t, shared_down.t}, {}, shared_limit};
    check_close(run(backend,
                    [&](Graph& g) {
                      plain.out = g.new_value(DType::kF32, {n_tokens, d});
                      g.add(plain);
                      return plain.out;
                    }),
                want_plain, 4e-6);
  });
}

namespace {

constexpr int64_t kPage = 16, kRow = 64;

/// Two sequences in shuffled pages, and every step over them.
struct TwoTexts {
  std::vector<int32_t> table, positions, slots, sequence_of;
  int64_t width;
  explicit TwoTexts(int64_t n_tokens) : width((n_tokens + kPage - 1) / kPage) {
    table.resize(static_cast<size_t>(2 * width));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(7));
  }
  int64_t n_pages() const { return 2 * width; }
  int32_t slot(int64_t sequence, int64_t p) const {
    return static_cast<int32_t>(table[static_cast<size_t>(sequence * width + p / kPage)] * kPage + p % kPage);
  }
  /// Tokens [first, first + n) of both.
  StepTensors step(int64_t first, int64_t n) {
    positions.clear(), slots.clear(), sequence_of.clear();
    for (int32_t s = 0; s < 2; ++s) {
      for (int64_t p = first; p < first + n; ++p) {
        positions.push_back(static_cast<int32_t>(p)), slots.push_back(slot(s, p)), sequence_of.push_back(s);
      }
    }
    const auto ints = [](std::vector<int32_t>& v, Shape shape) { return Tensor(DType::kI32, shape, v.data()); };
    return {ints(positions, {2 * n}), ints(slots, {2 * n}), ints(sequence_of, {2 * n}), ints(table, {2, width})};
  }
};

/// The rows of one text as the rules have them.
std::vector<std::vector<double>> compressed(const std::vector<std::vector<double>>& kv,
                                            const std::vector<std::vector<double>>& gate, const Floats& positional,
                                            const Floats& norm, const Floats& frequencies, int64_t ratio,
                                            bool overlaps) {
  std::vector<std::vector<double>> rows;
  const auto n = static_cast<size_t>(kRow);
  for (int64_t w = 0; (w + 1) * ratio <= std::ssize(kv); ++w) {
    std::vector<double> row(n);
    double squares = 0;
    for (size_t j = 0; j < n; ++j) {
      double total = 0, sum = 0;
      for (int64_t p = overlaps ? std::max<int64_t>(0, (w - 1) * ratio) : w * ratio; p < (w + 1) * ratio; ++p) {
        const size_t i = overlaps && p >= w * ratio ? n + j : j, at = static_cast<size_t>(p);
        const double weight = std::exp(
            gate[at][i] + static_cast<double>(positional.v[static_cast<size_t>(p % ratio * positional.t.dim(1)) + i]));
        total += weight;
        sum += weight * kv[at][i];
      }
      row[j] = sum / total;
      squares += row[j] * row[j];
    }
    for (size_t j = 0; j < n; ++j)
      row[j] *= static_cast<double>(norm.v[j]) / std::sqrt(squares / static_cast<double>(n) + kEps);
    for (size_t i = 0; i < frequencies.v.size(); ++i) {
      const double angle = static_cast<double>(w * ratio) * static_cast<double>(frequencies.v[i]);
      double& a = row[n - 2 * frequencies.v.size() + 2 * i];
      double& b = row[n - 2 * frequencies.v.size() + 2 * i + 1];
      const double x = a, y = b;
      a = x * std::cos(angle) - y * std::sin(angle);
      b = x * std::sin(angle) + y * std::cos(angle);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

TEST_CASE("compressed rows are the rule's, and the same bits however the tokens come") {
  each_backend([](Backend& backend) {
    for (const auto& [ratio, overlaps] : {std::pair<int64_t, bool>{4, true}, {4, false}, {16, false}, {32, false}}) {
      CAPTURE(ratio);
      CAPTURE(overlaps);
      const int64_t n_tokens = 75, hidden = 32, channels = overlaps ? 2 * kRow : kRow;
      const Floats x({2 * n_tokens, hidden}, 1), kv_proj({channels, hidden}, 2), gate_proj({channels, hidden}, 3, 0.3F),
          positional({ratio, channels}, 4), norm({kRow}, 5), frequencies({8}, 6, 0.3F);
      const CompressorWeights w{kv_proj.t, gate_proj.t, positional.t, norm.t};
      TwoTexts texts(n_tokens);
      std::vector<std::byte> first_bytes;
      for (const int64_t chunk : {n_tokens, int64_t{1}, int64_t{3}, int64_t{7}, int64_t{16}}) {
        CAPTURE(chunk);
        Floats pending({texts.n_pages(), kPage, 2 * channels}, 0),
            rows({texts.n_pages(), std::max<int64_t>(1, kPage / ratio), kRow}, 0);
        std::fill(pending.v.begin(), pending.v.end(), NAN);
        std::fill(rows.v.begin(), rows.v.end(), NAN);
        for (int64_t at = 0; at < n_tokens; at += chunk) {
          const int64_t n = std::min(chunk, n_tokens - at);
          Floats part({2 * n, hidden}, 0);
          for (int64_t s = 0; s < 2; ++s)
            std::copy_n(x.v.data() + (s * n_tokens + at) * hidden, n * hidden, part.v.data() + s * n * hidden);
          Graph g;
          compress_rows(g, compressor_products(g, part.t, w), w, frequencies.t, texts.step(at, n), {pending.t, rows.t},
                        ratio, static_cast<float>(kEps));
          Executor(backend).run(g);
        }
        const auto bytes = std::as_bytes(std::span(rows.v));
        if (first_bytes.empty()) {
          first_bytes.assign(bytes.begin(), bytes.end());
        } else {
          CHECK(std::equal(bytes.begin(), bytes.end(), first_bytes.begin(), first_bytes.end()));
        }
        if (chunk != n_tokens) continue;
        std::vector<float> got;
        std::vector<double> want;
        for (int64_t s = 0; s < 2; ++s) {
          std::vector<std::vector<double>> kv, gate;
          for (int64_t p = 0; p < n_tokens; ++p) {
            for (const auto& [out, matrix] : {std::pair{&kv, &kv_proj}, {&gate, &gate_proj}}) {
              std::vector<double> y;
              for (int64_t c = 0; c < channels; ++c) {
                double sum = 0;
                for (int64_t i = 0; i < hidden; ++i)
                  sum += static_cast<double>(matrix->v[static_cast<size_t>(c * hidden + i)]) *
                         static_cast<double>(x.v[static_cast<size_t>((s * n_tokens + p) * hidden + i)]);
                y.push_back(sum);
              }
              out->push_back(std::move(y));
            }
          }
          const auto expected = compressed(kv, gate, positional, norm, frequencies, ratio, overlaps);
          for (size_t row = 0; row < expected.size(); ++row) {
            const int64_t last = static_cast<int64_t>(row) * ratio + ratio - 1, slot = texts.slot(s, last);
            const int64_t rows_of_page = rows.t.dim(1);
            const float* stored = rows.v.data() + (slot / kPage * rows_of_page + slot % kPage / ratio) * kRow;
            got.insert(got.end(), stored, stored + kRow);
            want.insert(want.end(), expected[row].begin(), expected[row].end());
          }
        }
        REQUIRE(!want.empty());
        check_close(got, want, 1e-5);
      }
    }
  });
}

TEST_CASE("attention sees its window, the compressed rows that are visible or chosen, and the sinks") {
  each_backend([](Backend& backend) {
    struct Case {
      int64_t ratio, window, top_k, heads, first, n;
      DType cache;
      int64_t row = kRow;
    };
    for (const Case& c : {Case{0, 8, 0, 4, 0, 40, DType::kF32}, Case{4, 8, 0, 4, 0, 75, DType::kF32},
                          Case{4, 8, 3, 5, 0, 75, DType::kF32}, Case{32, 16, 0, 20, 60, 15, DType::kF32},
                          Case{4, 200, 40, 64, 299, 1, DType::kF32}, Case{4, 32, 6, 4, 70, 5, DType::kBF16},
                          Case{32, 32, 0, 4, 70, 5, DType::kQ8_0}, Case{4, 128, 512, 64, 2300, 1, DType::kBF16, 512}}) {
      CAPTURE(c.ratio);
      CAPTURE(c.window);
      CAPTURE(c.top_k);
      const int64_t end = c.first + c.n, rows_of_page = c.ratio == 0 ? 1 : std::max<int64_t>(1, kPage / c.ratio);
      TwoTexts texts(end);
      const StepTensors step = texts.step(c.first, c.n);
      const Floats q({2 * c.n, c.heads, c.row}, 1), sinks({c.heads}, 2), values({texts.n_pages() * kPage, c.row}, 3),
          compressed_values({texts.n_pages() * rows_of_page, c.row}, 4);
      const auto cache_of = [&](const Floats& rows, int64_t n_rows, std::vector<std::byte>& bytes) {
        bytes.resize(static_cast<size_t>(rows.t.dim(0)) * row_bytes(c.cache, c.row));
        for (int64_t r = 0; r < rows.t.dim(0); ++r)
          cpu::store_row(c.cache, rows.v.data() + r * c.row,
                         bytes.data() + static_cast<size_t>(r) * row_bytes(c.cache, c.row), c.row);
        return Tensor(c.cache, {texts.n_pages(), n_rows, c.row}, bytes.data());
      };
      std::vector<std::byte> window_bytes, compressed_bytes;
      const Tensor window = cache_of(values, kPage, window_bytes);
      const Tensor rows = c.ratio == 0 ? Tensor() : cache_of(compressed_values, rows_of_page, compressed_bytes);
      const auto decoded = [&](const Tensor& t, int64_t r) {
        std::vector<float> row(static_cast<size_t>(c.row));
        dequantize_row(t.dtype, t.data + static_cast<size_t>(r) * row_bytes(t.dtype, c.row), row.data(), c.row);
        return std::vector<double>(row.begin(), row.end());
      };
      Ints chosen({2 * c.n, std::max<int64_t>(c.top_k, 1)},
                  std::vector<int32_t>(static_cast<size_t>(2 * c.n * std::max<int64_t>(c.top_k, 1)), -1));
      std::mt19937 random(5);
      std::vector<double> want;
      const double scale = 2.4 / std::sqrt(static_cast<double>(c.row));
      for (int64_t t = 0; t < 2 * c.n; ++t) {
        const int64_t p = step.positions.as<int32_t>()[t], s = step.sequence_of.as<int32_t>()[t];
        std::vector<std::vector<double>> seen;
        for (int64_t i = std::max<int64_t>(0, p + 1 - c.window); i <= p; ++i)
          seen.push_back(decoded(window, texts.slot(s, i)));
        std::vector<int64_t> visible(static_cast<size_t>(c.ratio == 0 ? 0 : (p + 1) / c.ratio));
        std::iota(visible.begin(), visible.end(), 0);
        if (c.top_k > 0 && std::ssize(visible) > c.top_k) {
          std::shuffle(visible.begin(), visible.end(), random);
          visible.resize(static_cast<size_t>(c.top_k));
          std::sort(visible.begin(), visible.end());
        }
        for (size_t i = 0; i < visible.size(); ++i) {
          if (c.top_k > 0) chosen.v[static_cast<size_t>(t * c.top_k) + i] = static_cast<int32_t>(visible[i]);
          const int32_t slot = texts.slot(s, visible[i] * c.ratio + c.ratio - 1);
          seen.push_back(decoded(rows, slot / kPage * rows_of_page + slot % kPage / c.ratio));
        }
        for (int64_t h = 0; h < c.heads; ++h) {
          double total = std::exp(static_cast<double>(sinks.v[static_cast<size_t>(h)]));
          std::vector<double> sum(static_cast<size_t>(c.row));
          for (const std::vector<double>& row : seen) {
            double score = 0;
            for (size_t i = 0; i < row.size(); ++i)
              score += static_cast<double>(q.v[static_cast<size_t>((t * c.heads + h) * c.row) + i]) * row[i];
            const double weight = std::exp(scale * score);
            total += weight;
            for (size_t i = 0; i < row.size(); ++i) sum[i] += weight * row[i];
          }
          for (const double x : sum) want.push_back(x / total);
        }
      }
      const std::vector<float> got = run(backend, [&](Graph& g) {
        return compressed_attention(g, q.t, window, rows, c.top_k > 0 ? chosen.t : Tensor(), sinks.t, step,
                                    {static_cast<float>(scale), c.window, c.ratio});
      });
      check_close(got, want, c.cache == DType::kF32 ? 1e-5 : 2e-2);
    }
  });
}

TEST_CASE("a row that is key and value is normed whole before its end is rotated") {
  each_backend([](Backend& backend) {
    const Floats kv({2, 40}, 1), norm({40}, 2), frequencies({8}, 3, 0.1F);
    const Ints positions({2}, {3, 900}), slots({2}, {1, 0});
    std::vector<float> cache(80);
    const Tensor rows(DType::kF32, {1, 2, 40}, cache.data());
    Graph g;
    const Tensor table = rope_table(g, positions.t, frequencies.t);
    store_latent(g, kv.t, norm.t, static_cast<float>(kEps), table, RopePairing::kAdjacent, slots.t, rows);
    Executor(backend).run(g);
    const std::vector<float> want = run(backend, [&](Graph& graph) {
      const Tensor normed = rms_norm(graph, kv.t, norm.t, static_cast<float>(kEps)).reshaped({2, 1, 40});
      return rotate_heads(graph, normed, rope_table(graph, positions.t, frequencies.t), 24, RopePairing::kAdjacent);
    });
    for (int64_t t = 0; t < 2; ++t) {
      const int32_t slot = slots.v[static_cast<size_t>(t)];
      check_close({cache.begin() + slot * 40, cache.begin() + slot * 40 + 40},
                  {want.begin() + t * 40, want.begin() + t * 40 + 40}, 1e-6);
    }
  });
}
