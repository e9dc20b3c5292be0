// The lightning indexer's choice through graph and backend, against scores in float64 and a plain sort.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "attention_problem.h"
#include "cpu/cpu_backend.h"
#include "graph/graph.h"
#include "ops/index_rows.h"

namespace fathom {
namespace {

using namespace testing;

/// Pages hold 64 tokens: the index cache has 64 / tokens_per_row rows in each, PagedStep counts in rows.
constexpr int64_t kTokensPerPage = 64;

struct IndexDims {
  int64_t heads, dim;
};

/// A step whose tokens choose among rows of tokens_per_row tokens each.
struct IndexProblem {
  PagedStep paged;  ///< one "token" of it is a row of the index cache
  std::vector<int32_t> positions, sequence_of;
  StepTensors step;
  Tensor q, head_weights;
  int tokens_per_row;

  /// sequences: in tokens.
  IndexProblem(IndexDims d, const std::vector<Sequence>& sequences, int tokens_per_row_, DType cache, uint32_t seed = 3)
      : paged(in_rows(sequences, tokens_per_row_), kTokensPerPage / tokens_per_row_, d.dim, cache, seed),
        tokens_per_row(tokens_per_row_) {
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (int64_t i = 0; i < sequences[s].n_new; ++i) {
        positions.push_back(static_cast<int32_t>(sequences[s].n_past + i));
        sequence_of.push_back(static_cast<int32_t>(s));
      }
    }
    const auto n = static_cast<int64_t>(positions.size());
    step = {Tensor(DType::kI32, {n}, positions.data()), Tensor(), Tensor(DType::kI32, {n}, sequence_of.data()),
            paged.step().page_table};
    q = paged.gaussian(DType::kF32, {n, d.heads, d.dim}, 1.0F);
    head_weights = paged.gaussian(DType::kF32, {n, d.heads}, 1.0F);
  }

  static std::vector<Sequence> in_rows(std::vector<Sequence> sequences, int tokens_per_row) {
    for (Sequence& s : sequences) {
      const int64_t n_rows = std::max<int64_t>(1, (s.n_past + s.n_new) / tokens_per_row);
      s = {n_rows - 1, 1};
    }
    return sequences;
  }

  int64_t n_tokens() const { return static_cast<int64_t>(positions.size()); }
  int64_t n_visible(int64_t t) const { return (positions[static_cast<size_t>(t)] + 1) / tokens_per_row; }

  std::vector<double> scores(int64_t t) const {
    const std::vector<double> rows = decoded(paged.cache());
    const int64_t n = q.dim(2), n_rows = paged.cache().dim(1);
    std::vector<double> out;
    for (int64_t w = 0; w < n_visible(t); ++w) {
      const int64_t page = step.page_table.row_as<int32_t>(sequence_of[static_cast<size_t>(t)])[w / n_rows];
      const double* row = rows.data() + (page * n_rows + w % n_rows) * n;
      double score = 0;
      for (int64_t h = 0; h < q.dim(1); ++h) {
        double dot = 0;
        for (int64_t i = 0; i < n; ++i) dot += static_cast<double>(q.row_as<float>(t)[h * n + i]) * row[i];
        score += static_cast<double>(head_weights.row_as<float>(t)[h]) * std::max(dot, 0.0);
      }
      out.push_back(score);
    }
    return out;
  }

  std::vector<int32_t> run(const std::string& isa, int64_t top_k, int n_threads = 2) const {
    const auto backend = make_cpu_backend({n_threads, isa});
    Graph g;
    const Tensor chosen = index_rows(g, q, head_weights, paged.cache(), step, tokens_per_row, top_k);
    g.keep(chosen);
    Executor executor(*backend);
    executor.run(g);
    const Tensor r = g.resolve(chosen);
    return {r.as<int32_t>(), r.as<int32_t>() + r.shape.n_elements()};
  }
};

/// The rows are rising, followed by -1 alone, as many as there can be, and none was left out whose score is higher than
/// a chosen one's by more than `tolerance` of the scores' size.
void check_choice(const IndexProblem& p, const std::vector<int32_t>& chosen, int64_t top_k, double tolerance) {
  REQUIRE(chosen.size() == static_cast<size_t>(p.n_tokens() * top_k));
  for (int64_t t = 0; t < p.n_tokens(); ++t) {
    CAPTURE(t);
    const std::vector<double> scores = p.scores(t);
    const auto n = static_cast<int64_t>(scores.size()), n_chosen = std::min(n, top_k);
    const int32_t* rows = chosen.data() + t * top_k;
    bool is_list = true;
    for (int64_t i = 0; i < top_k; ++i)
      is_list = is_list && (i >= n_chosen ? rows[i] == -1 : rows[i] > (i > 0 ? rows[i - 1] : -1) && rows[i] < n);
    REQUIRE(is_list);
    double size = 0, lowest_in = HUGE_VAL, highest_out = -HUGE_VAL;
    for (int64_t w = 0; w < n; ++w) {
      const double s = scores[static_cast<size_t>(w)];
      size = std::max(size, std::fabs(s));
      if (std::binary_search(rows, rows + n_chosen, static_cast<int32_t>(w))) {
        lowest_in = std::min(lowest_in, s);
      } else {
        highest_out = std::max(highest_out, s);
      }
    }
    CHECK(highest_out <= lowest_in + tolerance * size);
  }
}

constexpr IndexDims kReleased{64, 128}, kSmall{4, 32};
constexpr DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ8_0};

std::vector<Sequence> several() { return {{0, 1}, {62, 1}, {63, 1}, {64, 3}, {0, 65}, {130, 7}, {700, 2}, {199, 1}}; }

/// Largest error of a score by the largest score: sums of HI * DI products of floats.
constexpr double kTolerance = 1e-5;

TEST_CASE(
    "index_rows chooses the visible rows of highest score, on every cache type, for rows of one and of four tokens") {
  for (const std::string& isa : cpu_isa_names()) {
    for (const DType cache : kCacheTypes) {
      for (const int tokens_per_row : {1, 4}) {
        for (const int64_t top_k : {1, 20, 64, 2000}) {
          INFO(isa, " cache ", dtype_name(cache), " tokens per row ", tokens_per_row, " top k ", top_k);
          const IndexProblem p(kSmall, several(), tokens_per_row, cache);
          check_choice(p, p.run(isa, top_k), top_k, kTolerance);
        }
      }
    }
  }
}

TEST_CASE("index_rows at the released sizes, and at sizes that fill no vector") {
  for (const std::string& isa : cpu_isa_names()) {
    for (const IndexDims d : {kReleased, IndexDims{1, 32}, IndexDims{3, 20}, IndexDims{17, 70}, IndexDims{5, 3}}) {
      for (const DType cache : {DType::kF32, DType::kBF16}) {
        INFO(isa, " heads ", d.heads, " dim ", d.dim, " cache ", dtype_name(cache));
        const IndexProblem p(d, {{300, 3}, {0, 2}, {127, 1}, {1000, 1}}, 1, cache);
        check_choice(p, p.run(isa, 128), 128, kTolerance);
      }
    }
  }
}

TEST_CASE("index_rows chooses among so many rows and tokens that scores are kept in several waves") {
  for (const std::string& isa : cpu_isa_names()) {
    if (isa == "reference") continue;
    // 64 MiB of scores are those of 83 groups of 8 tokens at 25,000 rows.
    const IndexProblem p({2, 8}, {{24300, 700}}, 1, DType::kF16);
    const std::vector<int32_t> chosen = p.run(isa, 40);
    const IndexProblem reference({2, 8}, {{24300, 700}}, 1, DType::kF16);
    int64_t n_same = 0;
    const std::vector<int32_t> expected = reference.run("reference", 40);
    for (size_t i = 0; i < expected.size(); ++i) n_same += chosen[i] == expected[i] ? 1 : 0;
    CHECK(n_same >= std::ssize(expected) * 999 / 1000);  // a close call may go the other way
  }
}

TEST_CASE("of equal scores index_rows chooses the lower row") {
  for (const std::string& isa : cpu_isa_names()) {
    const IndexProblem p(kSmall, {{299, 1}}, 1, DType::kF32);
    std::fill_n(p.q.as<float>(), p.q.shape.n_elements(), 0.0F);  // every score is zero, some as -0
    for (const int64_t top_k : {1, 100, 299}) {
      std::vector<int32_t> first(static_cast<size_t>(top_k));
      std::iota(first.begin(), first.end(), 0);
      CHECK(p.run(isa, top_k) == first);
    }
  }
}

TEST_CASE("index_rows chooses the same rows alone, beside other sequences and on any number of threads") {
  for (const std::string& isa : cpu_isa_names()) {
    for (const DType cache : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
      INFO(isa, " cache ", dtype_name(cache));
      const int64_t top_k = 96;
      IndexProblem p(kReleased, {{300, 1}, {0, 37}, {1520, 5}, {64, 140}}, 1, cache);
      const std::vector<int32_t> together = p.run(isa, top_k, 1);
      for (const int n_threads : {2, 5}) CHECK(p.run(isa, top_k, n_threads) == together);
      for (const int64_t t : {0, 30, 38, 41, 100}) {
        const auto backend = make_cpu_backend({2, isa});
        Graph g;
        StepTensors step = p.step;
        step.positions = Tensor(DType::kI32, {1}, &p.positions[static_cast<size_t>(t)]);
        step.sequence_of = Tensor(DType::kI32, {1}, &p.sequence_of[static_cast<size_t>(t)]);
        const Tensor chosen =
            index_rows(g, p.q.slice(t, 1), p.head_weights.slice(t, 1), p.paged.cache(), step, 1, top_k);
        g.keep(chosen);
        Executor executor(*backend);
        executor.run(g);
        const int32_t* alone = g.resolve(chosen).as<int32_t>();
        CHECK(std::equal(alone, alone + top_k, together.begin() + t * top_k));
      }
    }
  }
}

TEST_CASE("store_rows puts each row where its slot says, in every cache type") {
  for (const DType cache : kCacheTypes) {
    CAPTURE(dtype_name(cache));
    PagedStep p({{0, 130}}, 64, 32, cache, 1);
    const Tensor x = p.gaussian(DType::kF32, {2, 32}, 1.0F);
    std::vector<int32_t> slots = {129, 3};
    const auto backend = make_cpu_backend({2, "auto"});
    Graph g;
    store_rows(g, x, Tensor(DType::kI32, {2}, slots.data()), p.cache());
    Executor executor(*backend);
    executor.run(g);
    for (int64_t i = 0; i < 2; ++i) {
      std::vector<std::byte> expected(row_bytes(cache, 32));
      cpu::store_row(cache, x.row_as<float>(i), expected.data(), 32);
      const std::byte* row = cpu::cache_row(p.cache(), slots[static_cast<size_t>(i)]);
      CHECK(std::equal(expected.begin(), expected.end(), row));
    }
  }
}

}  // namespace
}  // namespace fathom
