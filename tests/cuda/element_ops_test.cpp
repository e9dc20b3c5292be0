// The operations that treat each row by itself, the way into the cache, and the router, against the CPU's reference.
#include <limits>
#include <tuple>

#include "core/float_convert.h"
#include "core/quant/dequantize.h"
#include "on_device.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

const DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};

std::vector<float> as_floats(const Tensor& t) { return {t.as<float>(), t.as<float>() + t.shape.n_elements()}; }

/// (cosine, sine) pairs.
Tensor rope_rows(HostTensors& h, int64_t n_tokens, int64_t n_pairs) {
  const Tensor t = h.make(DType::kF32, {n_tokens, n_pairs, 2});
  for (int64_t i = 0; i < n_tokens * n_pairs; ++i) {
    const double angle = 0.37 * static_cast<double>(i);
    t.as<float>()[2 * i] = static_cast<float>(std::cos(angle));
    t.as<float>()[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
  return t;
}

}  // namespace

TEST_CASE("cuda: sums and chosen rows are exact") {
  for (const auto& [t, d] : {std::pair<int64_t, int64_t>{1, 1}, {3, 33}, {5, 2048}, {17, 257}}) {
    HostTensors h(1);
    OnDevice device;
    const AddArgs add{h.floats({t, d}), h.floats({t, d}), h.make(DType::kF32, {t, d})};
    const AddArgs on = device.node(add);
    cuda::add(on, device.c);
    run_reference(add);
    CHECK(device.fetch<float>(on.out) == as_floats(add.out));

    const ConcatRowsArgs both{add.a, h.floats({t, 5}), h.make(DType::kF32, {t, d + 5})};
    const ConcatRowsArgs concatenated = device.node(both);
    cuda::concat_rows(concatenated, device.c);
    run_reference(both);
    CHECK(device.fetch<float>(concatenated.out) == as_floats(both.out));

    const TakeRowsArgs take{h.floats({t, d}),
                            h.ints({2}, [&](int64_t i) { return static_cast<int32_t>(i == 0 ? t - 1 : 0); }),
                            h.make(DType::kF32, {2, d})};
    const TakeRowsArgs taken = device.node(take);
    cuda::take_rows(taken, device.c);
    run_reference(take);
    CHECK(device.fetch<float>(taken.out) == as_floats(take.out));
  }
}

TEST_CASE("cuda: a norm agrees with the reference, and in int8 to half a step") {
  for (const auto& [t, d] : {std::pair<int64_t, int64_t>{1, 2048}, {16, 7168}, {3, 64}, {2, 5}, {5, 1536}, {1, 33}}) {
    CAPTURE(d);
    HostTensors h(2);
    OnDevice device;
    const RmsNormArgs norm{h.floats({t, d}, 3), h.floats({d}), h.make(DType::kF32, {t, d}), 1e-6F};
    const RmsNormArgs on = device.node(norm);
    cuda::rms_norm(on, device.c);
    run_reference(norm);
    const std::vector<float> plain = device.fetch<float>(on.out);
    CHECK(worst_difference(plain, norm.out.as<float>()) < 1e-6);
    if (d % 32 != 0) continue;

    const RmsNormArgs again = device.node(norm);
    const Tensor q = device.poisoned(h.make(DType::kI8, {t, d})),
                 scales = device.poisoned(h.make(DType::kI64, {t, d / 32}));
    static_assert(sizeof(cuda::ActScale) == sizeof(int64_t));
    cuda::rms_norm_quantized(again, {q.as<int8_t>(), scales.as<cuda::ActScale>(), d}, device.c);
    CHECK(device.fetch<float>(again.out) == plain);
    const std::vector<int8_t> codes = device.fetch<int8_t>(q);
    const std::vector<cuda::ActScale> steps = device.fetch<cuda::ActScale>(scales);
    for (size_t i = 0; i < codes.size(); ++i) {
      const cuda::ActScale& s = steps[i / 32];
      REQUIRE(std::fabs(plain[i] - s.d * static_cast<float>(codes[i])) <= 0.5001F * s.d);
    }
    for (size_t b = 0; b < steps.size(); ++b) {
      for (size_t half = 0; half < 2; ++half) {
        int sum = 0;
        for (size_t i = 0; i < 16; ++i) sum += codes[32 * b + 16 * half + i];
        REQUIRE(steps[b].sum[half] == sum);
      }
    }
  }
}

TEST_CASE("cuda: angles stay exact at far positions") {
  HostTensors h(3);
  OnDevice device;
  const Tensor frequencies = h.make(DType::kF32, {32});
  for (int64_t i = 0; i < 32; ++i)
    frequencies.as<float>()[i] = static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / 32));
  const RopeTableArgs rope{h.ints({9}, [](int64_t i) { return static_cast<int32_t>(i * 20479); }), frequencies,
                           h.make(DType::kF32, {9, 32, 2})};
  const RopeTableArgs on = device.node(rope);
  cuda::rope_table(on, device.c);
  run_reference(rope);
  CHECK(worst_difference(device.fetch<float>(on.out), rope.out.as<float>()) < 1e-7);
}

TEST_CASE("cuda: heads are rotated in both pairings, the rest of them copied") {
  for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
    for (const auto& [n_heads, head_dim, first, pairs] : {std::tuple<int64_t, int64_t, int, int64_t>{16, 192, 128, 32},
                                                          {3, 10, 2, 4},
                                                          {128, 192, 128, 32},
                                                          {1, 8, 0, 4}}) {
      CAPTURE(head_dim);
      HostTensors h(4);
      OnDevice device;
      const RotateHeadsArgs rotate{h.floats({3, n_heads, head_dim}), rope_rows(h, 3, pairs),
                                   h.make(DType::kF32, {3, n_heads, head_dim}), first, pairing};
      const RotateHeadsArgs on = device.node(rotate);
      run_side_by_side(device, on);
      run_reference(rotate);
      CHECK(worst_difference(device.fetch<float>(on.out), rotate.out.as<float>()) < 2e-7);
    }
  }
}

TEST_CASE("cuda: rows come into the cache as the reference stores them, and nowhere else") {
  for (const DType type : kCacheTypes) {
    for (const auto& [latent, pairs] : {std::pair<int64_t, int64_t>{512, 32}, {64, 16}, {32, 16}}) {
      for (const bool with_query : {false, true}) {
        CAPTURE(dtype_name(type));
        CAPTURE(latent);
        CAPTURE(with_query);
        const int64_t n_tokens = 5, row = latent + 2 * pairs;
        const int32_t slots[] = {63, 64, 0, 191, 130};  // page borders
        HostTensors h(5);
        OnDevice device;
        const StoreLatentArgs store{
            h.floats({n_tokens, row}, 2),  h.floats({latent}),
            rope_rows(h, n_tokens, pairs), h.ints({n_tokens}, [&](int64_t i) { return slots[i]; }),
            h.bytes(type, {3, 64, row}),   1e-6F,
            RopePairing::kAdjacent};
        const StoreLatentArgs on = device.node(store);
        if (with_query) {
          const RotateHeadsArgs rotate{h.floats({n_tokens, 4, 2 * pairs + 8}), store.rope_table,
                                       h.make(DType::kF32, {n_tokens, 4, 2 * pairs + 8}), 8, RopePairing::kAdjacent};
          RotateHeadsArgs rotated = device.node(rotate);
          rotated.table = on.rope_table;
          run_side_by_side(device, on, rotated);
          run_reference(rotate);
          CHECK(worst_difference(device.fetch<float>(rotated.out), rotate.out.as<float>()) < 2e-7);
        } else {
          run_side_by_side(device, on);
        }
        const std::vector<std::byte> got = device.fetch<std::byte>(on.cache);
        run_reference(store);
        // f32 rounds the last bit otherwise; coarser types then round a value in a thousand to the other side.
        const size_t row_size = row_bytes(type, row);
        std::vector<float> a(static_cast<size_t>(row)), b(a);
        for (int64_t slot = 0; slot < 3 * 64; ++slot) {
          const std::byte* want = store.cache.data + static_cast<size_t>(slot) * row_size;
          const std::byte* have = got.data() + static_cast<size_t>(slot) * row_size;
          if (std::find(std::begin(slots), std::end(slots), slot) == std::end(slots)) {
            REQUIRE(std::memcmp(want, have, row_size) == 0);
            continue;
          }
          dequantize_row(type, want, b.data(), row);
          dequantize_row(type, have, a.data(), row);
          const double step = type == DType::kF32    ? 1e-6
                              : type == DType::kF16  ? 6e-4
                              : type == DType::kBF16 ? 5e-3
                              : type == DType::kQ8_0 ? 9e-3
                                                     : 0.08;
          CHECK(worst_difference(a, b.data()) < step);
          int n_other = 0;
          for (size_t i = 0; i < a.size(); ++i) n_other += std::fabs(a[i] - b[i]) > 1e-6F * (1 + std::fabs(b[i]));
          CHECK(n_other <= row / 50);
        }
      }
    }
  }
}

TEST_CASE("cuda: keys and values come into the cache as the reference stores them") {
  for (const DType type : kCacheTypes) {
    CAPTURE(dtype_name(type));
    const int64_t n_heads = 3, n = 32;
    HostTensors h(6);
    OnDevice device;
    const StoreKeyValueArgs store{h.floats({4, n_heads, n}), h.floats({4, n_heads, n}),
                                  h.ints({4}, [](int64_t i) { return static_cast<int32_t>(65 - 21 * i); }),
                                  h.bytes(type, {2, 64, 2 * n_heads * n})};
    const StoreKeyValueArgs on = device.node(store);
    cuda::store_key_value(on, device.c);
    const std::vector<std::byte> got = device.fetch<std::byte>(on.cache);
    run_reference(store);
    CHECK(std::memcmp(got.data(), store.cache.data, got.size()) == 0);
  }
}

TEST_CASE("cuda: experts are chosen and weighted as by the reference") {
  struct Router {
    int64_t n_experts;
    RouterParams params;
    bool has_bias;
  };
  const Router routers[] = {
      {64, {6, RouterScore::kSoftmax, 1, 1, GroupRank::kBest, false, 1.0F}, false},         // V1, V2-Lite
      {160, {6, RouterScore::kSoftmax, 8, 3, GroupRank::kBest, false, 16.0F}, false},       // V2
      {256, {8, RouterScore::kSigmoid, 8, 4, GroupRank::kSumOfTwoBest, true, 2.5F}, true},  // V3
      {8, {2, RouterScore::kSqrtSoftplus, 1, 1, GroupRank::kBest, true, 1.5F}, true},
      {7, {7, RouterScore::kSigmoid, 1, 1, GroupRank::kBest, true, 1.0F}, false},            // all of an odd number
      {12, {3, RouterScore::kSoftmax, 12, 4, GroupRank::kSumOfTwoBest, true, 1.0F}, false},  // groups of one
  };
  for (const Router& r : routers) {
    CAPTURE(r.n_experts);
    HostTensors h(7);
    OnDevice device;
    const int64_t t = 33;
    RouteExpertsArgs route{h.floats({t, r.n_experts}, 2), r.has_bias ? h.floats({r.n_experts}, 0.1F) : Tensor{},
                           h.make(DType::kI32, {t, r.params.n_used}), h.make(DType::kF32, {t, r.params.n_used}),
                           r.params};
    for (int64_t e = 0; e < r.n_experts; ++e)
      route.logits.as<float>()[e] = e % 2 == 0 ? 1.0F : 0.5F;  // ties go to the lower id
    const RouteExpertsArgs on = device.node(route);
    cuda::route_experts(on, device.c);
    run_reference(route);
    const std::vector<int32_t> ids = device.fetch<int32_t>(on.ids);
    CHECK(ids == std::vector<int32_t>(route.ids.as<int32_t>(), route.ids.as<int32_t>() + t * r.params.n_used));
    // The device's exponential is right to two units in the last place.
    CHECK(worst_difference(device.fetch<float>(on.weights), route.weights.as<float>()) < 2e-6);
  }
}

TEST_CASE("cuda: a router without numbers still names experts that exist") {
  HostTensors h(8);
  OnDevice device;
  RouteExpertsArgs route{h.floats({2, 64}),
                         {},
                         h.make(DType::kI32, {2, 6}),
                         h.make(DType::kF32, {2, 6}),
                         {6, RouterScore::kSoftmax, 1, 1, GroupRank::kBest, false, 1.0F}};
  std::fill_n(route.logits.as<float>(), 64, std::numeric_limits<float>::quiet_NaN());
  const RouteExpertsArgs on = device.node(route);
  cuda::route_experts(on, device.c);
  for (const int32_t id : device.fetch<int32_t>(on.ids)) CHECK((id >= 0 && id < 64));
}

TEST_CASE("cuda: memory that is not there is refused with what is needed and what is free") {
  try {
    cuda::allocate_device(size_t{1} << 50, "the model's weights", std::make_shared<uint64_t>(0));
    FAIL("a pebibyte was given");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kNoMemory);
    CHECK(std::string(e.what()).find("the model's weights; expected 1073741824 MiB free, got ") != std::string::npos);
  }
}
