#include <doctest/doctest.h>
#include <algorithm>
#include <random>

#include "graph/graph.h"

using namespace fathom;

namespace {

Tensor add(Graph& g, const Tensor& a, const Tensor& b) {
  Tensor out = g.new_value(DType::kF32, a.shape);
  g.add(AddArgs{a, b, out});
  return out;
}

/// Computes add nodes only, one after the other, as a backend would.
class AddBackend final : public Backend {
 public:
  std::string_view name() const override { return "add"; }
  std::string describe() const override { return "adds"; }
  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) override {
    return allocate_heap(size_bytes, what);
  }
  void check_supported(const Node&) const override {}
  void execute(std::span<const Node> nodes) override {
    for (const Node& n : nodes) {
      const auto& a = std::get<AddArgs>(n.args);
      for (int64_t i = 0; i < a.out.shape.n_elements(); ++i)
        a.out.as<float>()[i] = a.a.as<float>()[i] + a.b.as<float>()[i];
    }
  }
};

}  // namespace

TEST_CASE("values share memory only when their lives do not overlap: random graphs compute the right sums") {
  std::mt19937 rng(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::vector<float>> leaves(3, std::vector<float>(33));
    for (auto& leaf : leaves) {
      for (float& v : leaf) v = static_cast<float>(rng() % 100);
    }
    Graph g;
    std::vector<Tensor> values;
    std::vector<std::vector<float>> want;
    for (auto& leaf : leaves) values.emplace_back(DType::kF32, Shape{1, 33}, leaf.data()), want.push_back(leaf);
    std::vector<size_t> kept;
    for (int i = 0; i < 40; ++i) {
      const size_t a = rng() % values.size(), b = rng() % values.size();
      std::vector<float> sum(33);
      for (size_t j = 0; j < 33; ++j) sum[j] = want[a][j] + want[b][j];
      values.push_back(add(g, values[a], values[b]));
      want.push_back(sum);
      if (rng() % 5 == 0) {
        g.keep(values.back());
        kept.push_back(values.size() - 1);
      }
    }
    AddBackend backend;
    Executor executor(backend);
    executor.run(g);
    for (const size_t k : kept) {
      const float* got = g.resolve(values[k]).as<float>();
      CHECK(std::equal(want[k].begin(), want[k].end(), got));
    }
  }
}

TEST_CASE("a chain needs the memory of three values, however long it is") {
  std::vector<float> leaf(1000);
  Graph g;
  Tensor x(DType::kF32, {1, 1000}, leaf.data());
  for (int i = 0; i < 100; ++i) x = add(g, x, x);
  CHECK(g.plan() <= 2 * 4032);
}

TEST_CASE("views of a value move with it") {
  std::vector<float> leaf(20);
  for (size_t i = 0; i < leaf.size(); ++i) leaf[i] = static_cast<float>(i);
  Graph g;
  const Tensor x(DType::kF32, {4, 5}, leaf.data());
  const Tensor doubled = add(g, x, x);
  const Tensor last_two = add(g, doubled.slice(2, 2), doubled.slice(0, 2));
  g.keep(last_two);
  AddBackend backend;
  Executor executor(backend);
  executor.run(g);
  CHECK(g.resolve(last_two).as<float>()[0] == 20.0F);  // 2 * 10 + 2 * 0
}
