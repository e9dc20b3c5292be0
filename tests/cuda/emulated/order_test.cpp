// What no device can show: that results do not depend on the order in which blocks and threads run.
#include <doctest/doctest.h>

#include <cstring>
#include <functional>

#include "cuda/matmul_fixture.h"
#include "emulator/block.h"

using namespace fathom;
using namespace fathom::test;

namespace {

/// run() under each order gives the same bytes.
void check_orders(const std::function<std::vector<float>()>& run) {
  const std::vector<float> expected = run();
  for (const emulator::Order order : {emulator::Order::kFalling, emulator::Order::kShuffled}) {
    emulator::set_order(order);
    const std::vector<float> got = run();
    CHECK(got.size() == expected.size());
    CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
  }
  emulator::set_order(emulator::Order::kRising);
}

}  // namespace

TEST_CASE("products and mixtures are the same bits in every order of threads and blocks") {
  std::mt19937 rng(400);
  const int64_t hidden = 256;
  for (const DType type : {DType::kQ4_K, DType::kQ5_0, DType::kF16}) {
    CAPTURE(std::string(dtype_name(type)));
    const int64_t width = type == DType::kQ4_K ? 256 : 96;
    const TestWeights gate(type, 5, width, hidden, rng), up(type, 5, width, hidden, rng),
        down(type, 5, hidden, width, rng);
    for (const int64_t n_tokens : {4, 20}) {
      const std::vector<float> x = random_floats(static_cast<size_t>(n_tokens * hidden), rng),
                               weights = random_floats(static_cast<size_t>(n_tokens * 2), rng);
      std::vector<int32_t> ids(static_cast<size_t>(n_tokens * 2));
      for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 5);
      const DeviceArray<float> device_x(x), device_weights(weights);
      const DeviceArray<int32_t> device_ids(ids);
      check_orders([&] {
        const DeviceArray<float> out(x.size());
        const Shape shape{n_tokens, hidden}, routes{n_tokens, 2};
        Tensor w0 = gate.tensor().slab(0), u0 = up.tensor().slab(0), d0 = down.tensor().slab(0);
        const MoeFfnArgs args{device_x.tensor(DType::kF32, shape),
                              device_ids.tensor(DType::kI32, routes),
                              device_weights.tensor(DType::kF32, routes),
                              {gate.tensor(), up.tensor(), down.tensor()},
                              {w0, u0, d0},
                              out.tensor(DType::kF32, shape)};
        const TestContext context(cuda::moe_ffn_workspace(args));
        cuda::moe_ffn(args, context.context());
        context.check();
        return out.download();
      });
      check_orders([&] {
        const DeviceArray<float> out(static_cast<size_t>(n_tokens * width));
        const LinearArgs args{device_x.tensor(DType::kF32, {n_tokens, hidden}), gate.tensor().slab(1),
                              out.tensor(DType::kF32, {n_tokens, width})};
        const TestContext context(cuda::linear_workspace(args));
        cuda::linear(args, context.context());
        return out.download();
      });
    }
  }
}
