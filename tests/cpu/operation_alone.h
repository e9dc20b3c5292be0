// Operations run alone: random inputs with tensors over them, and a graph's one result on a backend.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "graph/graph.h"

namespace fathom::testing {

/// Values and the tensor that views them.
struct Floats {
  std::vector<float> v;
  Tensor t;
  Floats(Shape shape, uint32_t seed, float deviation = 1.0F)
      : v(static_cast<size_t>(shape.n_elements())), t(DType::kF32, shape, nullptr) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0F, deviation);
    for (float& x : v) x = normal(rng);
    t.data = reinterpret_cast<std::byte*>(v.data());
  }
};

struct Ints {
  std::vector<int32_t> v;
  Tensor t;
  Ints(Shape shape, std::vector<int32_t> values) : v(std::move(values)), t(DType::kI32, shape, v.data()) {}
};

/// The elements of the value that `build` adds to a graph and returns.
template <typename T = float> std::vector<T> run(Backend& backend, const std::function<Tensor(Graph&)>& build) {
  Graph g;
  const Tensor out = build(g);
  g.keep(out);
  Executor executor(backend);
  executor.run(g);
  const Tensor r = g.resolve(out);
  return {r.as<T>(), r.as<T>() + r.shape.n_elements()};
}

}  // namespace fathom::testing
