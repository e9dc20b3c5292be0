// Experts that pass through the device.
#include "cuda/streamed_experts.h"

#include <doctest/doctest.h>

#include <string>

using namespace fathom;
using namespace fathom::test;

TEST_CASE("experts that pass through the device in parts give the bits of those that lie there") {
  for (const DType type : {DType::kQ4_K, DType::kIQ2_XXS, DType::kBF16}) {
    CAPTURE(std::string(dtype_name(type)));
    StreamedExperts mixture(type, type == DType::kQ4_K ? 70 : 17, 7);
    const std::vector<float> want = mixture.on_device();
    for (const size_t n_experts : {1, 2, 100}) {
      if (n_experts != 2 && type != DType::kQ4_K) continue;
      CAPTURE(n_experts);
      const TestStream stream;
      CHECK(mixture.streamed(n_experts * mixture.expert_bytes(), stream) == want);
    }
  }
}
