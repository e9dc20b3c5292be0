// What V4 has around its attention: residual streams, norms of heads, groups of a projection, experts by id, limits.
#include <tuple>

#include "cuda/matmul_fixture.h"
#include "cuda/needs.h"
#include "paged.h"

using namespace fathom;
using namespace fathom::testing;
using test::DeviceArray;
using test::TestContext;
using test::TestWeights;

namespace {

CollapseStreamsArgs collapse_problem(HostTensors& h, int64_t t, int64_t m, int64_t d, bool is_head) {
  const int64_t n = is_head ? m : (2 + m) * m;
  CollapseStreamsArgs a;
  a.streams = h.floats({t, m * d}, 2), a.products = h.floats({t, n}, 30), a.base = h.floats({n});
  a.scale = h.floats({is_head ? 1 : 3});
  a.out = h.make(DType::kF32, {t, d});
  if (!is_head) a.mixing = h.make(DType::kF32, {t, m + m * m});
  a.norm_eps = a.eps = 1e-6F;
  a.iterations = 20;
  return a;
}

}  // namespace

TEST_CASE("cuda: streams are collapsed as by the reference, and normed in the same launch to the same bits") {
  for (const auto& [t, m, d] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 4, 4096}, {3, 4, 64}, {2, 2, 33}, {17, 1, 32}, {1, 4, 7168}}) {
    for (const bool is_head : {false, true}) {
      CAPTURE(d);
      CAPTURE(is_head);
      HostTensors h(41);
      OnDevice device;
      const CollapseStreamsArgs host = collapse_problem(h, t, m, d, is_head);
      CollapseStreamsArgs a = host;
      a.inputs([&](Tensor& x) { x = device.put(x); });
      a.out = device.poisoned(a.out);
      if (a.mixing) a.mixing = device.poisoned(a.mixing);
      cuda::collapse_streams(a, {}, device.c);
      run_reference(host);
      const std::vector<float> out = device.fetch<float>(a.out);
      CHECK(worst_difference(out, host.out.as<float>()) < 2e-6);
      if (!is_head) CHECK(worst_difference(device.fetch<float>(a.mixing), host.mixing.as<float>()) < 5e-6);

      RmsNormArgs norm{a.out, device.put(h.floats({d})), device.poisoned(host.out), 1e-6F};
      cuda::rms_norm(norm, device.c);
      const std::vector<float> apart = device.fetch<float>(norm.out);
      norm.out = device.poisoned(host.out);
      a.out = device.poisoned(host.out);
      const bool in_blocks = d % 32 == 0;
      const Tensor q = device.poisoned(h.make(DType::kI8, {t, d})),
                   scales = device.poisoned(h.make(DType::kI64, {t, std::max<int64_t>(1, d / 32)}));
      cuda::QuantizedRows rows;
      if (in_blocks) rows = {q.as<int8_t>(), scales.as<cuda::ActScale>(), d};
      cuda::collapse_streams(a, {norm.weight.as<const float>(), norm.out.as<float>(), norm.eps, rows}, device.c);
      CHECK(device.fetch<float>(norm.out) == apart);
      CHECK(device.fetch<float>(a.out) == out);
      if (!in_blocks) continue;
      const std::vector<int8_t> codes = device.fetch<int8_t>(q);
      const std::vector<cuda::ActScale> steps = device.fetch<cuda::ActScale>(scales);
      for (size_t i = 0; i < codes.size(); ++i)
        REQUIRE(std::fabs(apart[i] - steps[i / 32].d * static_cast<float>(codes[i])) <= 0.5001F * steps[i / 32].d);
    }
  }
}

TEST_CASE("cuda: a sublayer's output is spread over the streams as by the reference") {
  for (const auto& [t, m, d] : {std::tuple<int64_t, int64_t, int64_t>{1, 4, 4096}, {5, 2, 33}, {17, 1, 300}}) {
    HostTensors h(42);
    OnDevice device;
    const ExpandStreamsArgs host{h.floats({t, m * d}), h.floats({t, d}), h.floats({t, m + m * m}),
                                 h.make(DType::kF32, {t, m * d})};
    const ExpandStreamsArgs a = device.node(host);
    cuda::expand_streams(a, device.c);
    run_reference(host);
    CHECK(worst_difference(device.fetch<float>(a.out), host.out.as<float>()) < 1e-6);
  }
}

TEST_CASE("cuda: heads are normed without weights and rotated, in one launch or two, and rotated back") {
  for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
    for (const auto& [t, heads, n, pairs] :
         {std::tuple<int64_t, int64_t, int64_t, int64_t>{2, 64, 512, 32}, {3, 3, 50, 7}, {1, 2, 33, 4}}) {
      CAPTURE(n);
      HostTensors h(43);
      OnDevice device;
      const RmsNormArgs norm{h.floats({t * heads, n}), {}, h.make(DType::kF32, {t * heads, n}), 1e-6F};
      const Tensor table = h.make(DType::kF32, {t, pairs, 2});
      for (int64_t i = 0; i < t * pairs; ++i) {
        table.as<float>()[2 * i] = std::cos(0.3F * static_cast<float>(i));
        table.as<float>()[2 * i + 1] = std::sin(0.3F * static_cast<float>(i));
      }
      RotateHeadsArgs rotate{norm.out.reshaped({t, heads, n}), table, h.make(DType::kF32, {t, heads, n}),
                             static_cast<int>(n - 2 * pairs), pairing};
      const RmsNormArgs norm_on = device.node(norm);
      RotateHeadsArgs rotate_on = device.node(rotate);
      rotate_on.x = norm_on.out.reshaped({t, heads, n});
      cuda::rms_norm(norm_on, device.c);
      run_side_by_side(device, rotate_on);
      run_reference(norm);
      run_reference(rotate);
      CHECK(worst_difference(device.fetch<float>(norm_on.out), norm.out.as<float>()) < 1e-6);
      const std::vector<float> apart = device.fetch<float>(rotate_on.out);
      CHECK(worst_difference(apart, rotate.out.as<float>()) < 1e-6);
      rotate_on.out = device.poisoned(rotate.out);
      run_side_by_side(device, norm_on, rotate_on);
      CHECK(device.fetch<float>(rotate_on.out) == apart);

      RotateHeadsArgs back = rotate_on;
      back.x = rotate_on.out, back.out = device.poisoned(rotate.out), back.inverse = true;
      run_side_by_side(device, back);
      CHECK(worst_difference(device.fetch<float>(back.out), norm.out.as<float>()) < 1e-6);
    }
  }
}

TEST_CASE("cuda: a row that is key and value is normed whole before its last dimensions are rotated") {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3}) {
    CAPTURE(dtype_name(type));
    const int64_t t = 4, n = 512, pairs = 32;
    const int32_t slots[] = {63, 64, 0, 130};
    HostTensors h(44);
    OnDevice device;
    const StoreLatentArgs store{h.floats({t, n}, 2),       h.floats({n}),
                                h.floats({t, pairs, 2}),   h.ints({t}, [&](int64_t i) { return slots[i]; }),
                                h.bytes(type, {3, 64, n}), 1e-6F,
                                RopePairing::kAdjacent};
    const StoreLatentArgs on = device.node(store);
    run_side_by_side(device, on);
    const std::vector<std::byte> got = device.fetch<std::byte>(on.cache);
    run_reference(store);
    std::vector<float> device_row(n), reference_row(n);
    for (int64_t i = 0; i < 3 * 64; ++i) {
      const bool is_stored = std::find(std::begin(slots), std::end(slots), i) != std::end(slots);
      const auto* row = got.data() + i * static_cast<int64_t>(row_bytes(type, n));
      if (!is_stored) {
        REQUIRE(std::memcmp(row, cpu::cache_row(store.cache, i), row_bytes(type, n)) == 0);
        continue;
      }
      dequantize_row(type, row, device_row.data(), n);
      dequantize_row(type, cpu::cache_row(store.cache, i), reference_row.data(), n);
      // A value between two steps may fall to either side.
      const double step = type == DType::kF32 ? 1e-6 : type == DType::kF16 ? 1e-3 : type == DType::kBF16 ? 8e-3 : 7e-2;
      CHECK(worst_difference(device_row, reference_row.data()) < step);
    }
  }
}

TEST_CASE("cuda: an embedding stands side by side as often as there are streams") {
  std::mt19937 rng(45);
  const int64_t k = 256;
  const TestWeights w(DType::kQ4_K, 1, 5, k, rng);
  const DeviceArray<int32_t> ids(std::vector<int32_t>{4, 0, 3});
  const DeviceArray<float> once(3 * k), copies(3 * 4 * k);
  const TestContext context(0);
  cuda::embed_rows({w.tensor(), ids.tensor(DType::kI32, {3}), once.tensor(DType::kF32, {3, k})}, context.context());
  cuda::embed_rows({w.tensor(), ids.tensor(DType::kI32, {3}), copies.tensor(DType::kF32, {3, 4 * k}), 4},
                   context.context());
  const std::vector<float> want = once.download(), got = copies.download();
  for (int64_t i = 0; i < 3 * 4 * k; ++i)
    REQUIRE(got[static_cast<size_t>(i)] == want[static_cast<size_t>(i / (4 * k) * k + i % k)]);
}

TEST_CASE("cuda: groups of x meet their own rows of the weight") {
  std::mt19937 rng(46);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_K}) {
    for (const auto& [t, groups, rows, k] :
         {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 8, 64, 512}, {3, 2, 33, 256}, {20, 2, 70, 256}}) {
      CAPTURE(dtype_name(type));
      CAPTURE(t);
      const TestWeights w(type, 1, groups * rows, k, rng);
      const std::vector<float> x = test::random_floats(static_cast<size_t>(t * groups * k), rng);
      const DeviceArray<float> device_x(x), out(static_cast<size_t>(t * groups * rows));
      const GroupedLinearArgs a{device_x.tensor(DType::kF32, {t, groups * k}), w.tensor(),
                                out.tensor(DType::kF32, {t, groups * rows})};
      cuda::check_weights(a);
      const TestContext context(cuda::grouped_linear_workspace(a));
      cuda::grouped_linear(a, context.context());
      context.check();
      const std::vector<float> got = out.download(), act = w.quantized() ? test::rounded(x) : x;
      for (int64_t i = 0; i < t * groups; ++i) {
        for (int64_t r = 0; r < rows; ++r) {
          const test::Product p = test::product(w.row(0, i % groups * rows + r), act.data() + i * k, k);
          REQUIRE(std::fabs(got[static_cast<size_t>(i * rows + r)] - p.value) <= 2e-5 * p.norm);
        }
      }
      if (!w.quantized()) continue;
      // From x in int8 that others made: the same bits.
      const DeviceArray<std::byte> memory(cuda::quantized_rows_bytes(t, groups * k));
      cuda::MatmulOptions options;
      options.quantized_x = cuda::quantized_rows_at(memory.data(), t, groups * k);
      cuda::quantize_rows(a.x, options.quantized_x, nullptr);
      const DeviceArray<float> again(got.size());
      GroupedLinearArgs b = a;
      b.out = again.tensor(DType::kF32, a.out.shape);
      cuda::grouped_linear(b, context.context(), options);
      CHECK(again.download() == got);
    }
  }
}

TEST_CASE("cuda: experts that the token's id chooses have the scores of their logits") {
  HostTensors h(47);
  const RouterParams params{6, RouterScore::kSqrtSoftplus, 1, 1, GroupRank::kBest, true, 1.5F};
  for (const int64_t t : {int64_t{1}, int64_t{3}, int64_t{40}}) {
    OnDevice device;
    RouteExpertsArgs host{h.floats({t, 256}, 3), {}, h.make(DType::kI32, {t, 6}), h.make(DType::kF32, {t, 6}), params};
    host.table = h.ints({50, 6}, [&](int64_t i) { return static_cast<int32_t>((i * 37 + i / 6) % 256); });
    host.token_ids = h.ints({t}, [&](int64_t) { return h.below(50); });
    const RouteExpertsArgs a = device.node(host);
    cuda::route_experts(a, device.c);
    run_reference(host);
    CHECK(device.fetch<int32_t>(a.ids) == std::vector<int32_t>(host.ids.as<int32_t>(), host.ids.as<int32_t>() + t * 6));
    CHECK(worst_difference(device.fetch<float>(a.weights), host.weights.as<float>()) < 2e-6);
  }
}

TEST_CASE("cuda: hidden values of experts and shared experts are limited, each by their own limit") {
  HostTensors h(48);
  const int64_t hidden = 64, width = 32, n_experts = 4, n_used = 2;
  for (const int64_t t : {int64_t{1}, int64_t{5}, int64_t{20}}) {
    CAPTURE(t);
    OnDevice device;
    auto network = [&](bool is_stack) {
      const auto shape = [&](int64_t r, int64_t k) { return is_stack ? Shape{n_experts, r, k} : Shape{r, k}; };
      return GatedFfnWeights{h.floats(shape(width, hidden), 0.5F), h.floats(shape(width, hidden), 0.5F),
                             h.floats(shape(hidden, width), 0.5F)};
    };
    MoeFfnArgs host;
    host.x = h.floats({t, hidden});
    host.expert_ids = h.ints({t, n_used}, [&](int64_t) { return h.below(n_experts); });
    host.expert_weights = h.floats({t, n_used});
    host.experts = network(true), host.shared = network(false);
    host.out = h.make(DType::kF32, {t, hidden});
    host.clamp = 0.7F, host.shared_clamp = 1.3F;
    const MoeFfnArgs a = device.node(host);
    const TestContext context(cuda::moe_ffn_workspace(a));
    cuda::moe_ffn(a, context.context(device.c.stream));
    run_reference(host);
    CHECK(worst_difference(device.fetch<float>(a.out), host.out.as<float>()) < 1e-5);
    const std::vector<float> limited(host.out.as<float>(), host.out.as<float>() + t * hidden);
    host.clamp = host.shared_clamp = kNoClamp;
    run_reference(host);
    CHECK(worst_difference(limited, host.out.as<float>()) > 0.1);  // the limits matter here

    GatedFfnArgs alone{host.x, host.shared, host.out, 0.4F};
    const GatedFfnArgs on = device.node(alone);
    const TestContext room(cuda::gated_ffn_workspace(on));
    cuda::gated_ffn(on, room.context(device.c.stream));
    run_reference(alone);
    CHECK(worst_difference(device.fetch<float>(on.out), alone.out.as<float>()) < 1e-5);
  }
}

TEST_CASE("cuda: what no kernel takes is refused in one line that names operation and reason") {
  HostTensors h(49);
  const auto refusal = [](const Node& node) -> std::string {
    try {
      cuda::check_supported(node);
    } catch (const Error& e) {
      CHECK(e.code() == ErrorCode::kModel);
      return e.what();
    }
    return "";
  };
  CHECK(refusal({collapse_problem(h, 1, 4, 32, false)}).empty());
  const std::string why = refusal({collapse_problem(h, 1, 8, 32, false)});
  CHECK(why.find("operation collapse_streams has no kernel for 8 residual streams") != std::string::npos);
  CHECK(why.find("try --backend cpu") != std::string::npos);
}
