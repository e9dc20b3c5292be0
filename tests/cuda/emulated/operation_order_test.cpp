// Operations whose result would depend on the order in which blocks and threads get their turn have a race.
#include "cpu/store_row.h"
#include "emulator/block.h"
#include "on_device.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

/// All of the outputs' bytes of a few operations.
std::vector<std::vector<float>> run_all() {
  HostTensors h(21);
  OnDevice device;
  std::vector<std::vector<float>> out;

  const RmsNormArgs norm =
      device.node(RmsNormArgs{h.floats({3, 2048}), h.floats({2048}), h.make(DType::kF32, {3, 2048}), 1e-6F});
  const Tensor q = device.poisoned(h.make(DType::kI8, {3, 2048})),
               scales = device.poisoned(h.make(DType::kI64, {3, 64}));
  cuda::rms_norm_quantized(norm, {q.as<int8_t>(), scales.as<cuda::ActScale>(), 2048}, device.c);
  out.push_back(device.fetch<float>(norm.out));

  const RouterParams v3{8, RouterScore::kSigmoid, 8, 4, GroupRank::kSumOfTwoBest, true, 2.5F};
  const RouteExpertsArgs route = device.node(RouteExpertsArgs{
      h.floats({4, 256}), h.floats({256}, 0.1F), h.make(DType::kI32, {4, 8}), h.make(DType::kF32, {4, 8}), v3});
  cuda::route_experts(route, device.c);
  out.push_back(device.fetch<float>(route.weights));

  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t n_tokens : {int64_t{2}, int64_t{17}}) {  // pieces apart, pieces folded
      const Tensor cache = h.make(type, {3, 64, 576});
      for (int64_t row = 0; row < 3 * 64; ++row) {
        const Tensor values = h.floats({576});
        cpu::store_row(type, values.as<float>(), cpu::cache_row(cache, row), 576);
      }
      LatentAttentionArgs a;
      a.q = h.floats({n_tokens, 4, 32 + 64});
      a.kv_b = h.floats({4 * (32 + 32), 512}, 0.05F);
      a.cache = cache;
      a.step.positions = h.ints({n_tokens}, [&](int64_t i) { return static_cast<int32_t>(190 - n_tokens + i); });
      a.step.sequence_of = h.ints({n_tokens}, [](int64_t) { return 0; });
      a.step.page_table = h.ints({1, 4}, [](int64_t i) { return static_cast<int32_t>(i < 3 ? 2 - i : -1); });
      a.out = h.make(DType::kF32, {n_tokens, 4 * 32});
      a.scale = 0.1F;
      const LatentAttentionArgs on = device.node(a);
      device.workspace(cuda::latent_attention_workspace(on));
      cuda::latent_attention(on, {}, device.c);
      out.push_back(device.fetch<float>(on.out));
    }
  }
  IndexRowsArgs index;
  index.q = h.floats({2, 20, 128}), index.head_weights = h.floats({2, 20});
  index.cache = h.make(DType::kF16, {4, 64, 128});
  for (int64_t row = 0; row < 4 * 64; ++row) {
    const Tensor values = h.floats({128});
    cpu::store_row(DType::kF16, values.as<float>(), cpu::cache_row(index.cache, row), 128);
  }
  index.step.positions = h.ints({2}, [](int64_t i) { return static_cast<int32_t>(200 + i); });
  index.step.sequence_of = h.ints({2}, [](int64_t) { return 0; });
  index.step.page_table = h.ints({1, 4}, [](int64_t i) { return static_cast<int32_t>(3 - i); });
  index.chosen = h.make(DType::kI32, {2, 40});
  const IndexRowsArgs on = device.node(index);
  device.workspace(cuda::index_rows_workspace(on));
  cuda::index_rows(on, device.c);
  out.emplace_back();
  for (const int32_t row : device.fetch<int32_t>(on.chosen)) out.back().push_back(static_cast<float>(row));
  return out;
}

}  // namespace

TEST_CASE("norms, routes, attention and choices of rows are the same bits in every order of threads") {
  emulator::set_order(emulator::Order::kRising);
  const std::vector<std::vector<float>> want = run_all();
  for (const emulator::Order order : {emulator::Order::kFalling, emulator::Order::kShuffled}) {
    emulator::set_order(order);
    CHECK(run_all() == want);
  }
  emulator::set_order(emulator::Order::kRising);
}
