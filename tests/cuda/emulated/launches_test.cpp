// How many kernels a layer of a decode step takes: what ggml-like-backend/cuda/README.md says.
#include <tuple>

#include "emulator/block.h"
#include "layer_nodes.h"

using namespace fathom;
using namespace fathom::testing;

TEST_CASE("a layer of a step of one token takes 8 launches, 9 with a compressed query; of more tokens 11 and 13") {
  const std::unique_ptr<Backend> backend = cuda::make_backend(0, "a test");
  for (const auto& [n_tokens, compresses_query, want] :
       {std::tuple<int64_t, bool, uint64_t>{1, false, 8}, {1, true, 9}, {2, false, 11}, {16, true, 13}}) {
    CAPTURE(n_tokens);
    CAPTURE(compresses_query);
    LayerNodes layer(*backend, n_tokens, compresses_query, true, DType::kF32);
    const uint64_t before = emulator::n_launches();
    backend->execute(layer.nodes);
    // The first norm is the layer's before.
    CHECK(emulator::n_launches() - before - 1 == want);
  }
}

TEST_CASE("streams cost no launches of their own in a step of one token, and a mixture's result is spread at once") {
  const std::unique_ptr<Backend> backend = cuda::make_backend(0, "a test");
  // Twice coefficients with collapse and norm, projection, router with choice, gate and up, down.
  for (const auto& [n_tokens, want] : {std::pair<int64_t, uint64_t>{1, 6}, {3, 10}}) {
    CAPTURE(n_tokens);
    StreamNodes layer(*backend, n_tokens, DType::kF32);
    const uint64_t before = emulator::n_launches();
    backend->execute(layer.nodes);
    CHECK(emulator::n_launches() - before == want);
  }
}
