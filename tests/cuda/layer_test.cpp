// What runs as one gives the bits that it gives apart.
#include "layer_nodes.h"

using namespace fathom;
using namespace fathom::testing;

TEST_CASE("cuda: a layer's nodes together, one by one and played back give the same bits") {
  const std::unique_ptr<Backend> backend = cuda::make_backend(0, "a test");
  uint64_t key = 0;
  for (const int64_t n_tokens : {1, 2, 5}) {
    for (const bool compresses_query : {false, true}) {
      for (const DType router : {DType::kF32, DType::kQ8_0}) {
        CAPTURE(n_tokens);
        CAPTURE(compresses_query);
        CAPTURE(dtype_name(router));
        LayerNodes layer(*backend, n_tokens, compresses_query, router == DType::kQ8_0, router);
        const std::vector<std::byte> apart = layer.run(1);
        CHECK(layer.run(layer.nodes.size()) == apart);
        for (int i = 0; i < 3; ++i) {  // runs, is recorded, is played back
          backend->replay(key, layer.nodes);
          CHECK(layer.fetch() == apart);
        }
        ++key;
        int n_wrong = 0;
        for (const Tensor& t : layer.results) {
          std::vector<float> values(static_cast<size_t>(t.shape.n_elements()));
          backend->download(reinterpret_cast<std::byte*>(values.data()), t.data, t.size_bytes());
          for (const float v : values) n_wrong += !std::isfinite(v);
        }
        CHECK(n_wrong == 0);
      }
    }
  }
}

TEST_CASE(
    "cuda: streams collapsed and spread where their coefficients and values are made have the bits of one by one") {
  const std::unique_ptr<Backend> backend = cuda::make_backend(0, "a test");
  uint64_t key = 0;
  for (const int64_t n_tokens : {1, 3, 17}) {
    for (const DType mixing : {DType::kF32, DType::kF16, DType::kQ8_0}) {
      CAPTURE(n_tokens);
      CAPTURE(dtype_name(mixing));
      StreamNodes layer(*backend, n_tokens, mixing);
      const std::vector<std::byte> apart = layer.run(1);
      CHECK(layer.run(layer.nodes.size()) == apart);
      for (int i = 0; i < 2; ++i) {
        backend->replay(key, layer.nodes);
        CHECK(layer.fetch() == apart);
      }
      ++key;
    }
  }
}
