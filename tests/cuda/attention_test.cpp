// Attention over pages: every cache type, the heads of released models, page borders, pieces and their fold.
#include "core/quant/quantize.h"
#include "cuda/split_plan.h"
#include "paged.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

/// Weights of any type whose products stay near one.
Tensor weights(HostTensors& h, DType type, Shape shape) {
  const float deviation = 1.0F / std::sqrt(static_cast<float>(shape.last()));
  const Tensor f = h.floats(shape, deviation);
  if (type == DType::kF32) return f;
  const Tensor t = h.make(type, shape);
  if (type == DType::kF8_E4M3) {
    for (int64_t r = 0; r < f.n_rows(); ++r)
      cpu::store_row(type, f.as<float>() + r * shape.last(),
                     t.data + static_cast<size_t>(r) * row_bytes(type, shape.last()), shape.last());
    return t;
  }
  const std::vector<float> importance(static_cast<size_t>(shape.last()), 1.0F);
  for (int64_t r = 0; r < f.n_rows(); ++r)
    quantize_row(type, f.as<float>() + r * shape.last(),
                 t.data + static_cast<size_t>(r) * row_bytes(type, shape.last()), shape.last(), importance.data());
  return t;
}

LatentAttentionArgs latent_problem(Paged& p, int64_t n_heads, int64_t nope, int64_t rope, int64_t value, int64_t latent,
                                   DType weight, bool split_weights) {
  LatentAttentionArgs a;
  a.q = p.h.floats({p.n_tokens(), n_heads, nope + rope});
  if (split_weights) {
    a.k_b = weights(p.h, weight, {n_heads, latent, nope});
    a.v_b = weights(p.h, weight, {n_heads, value, latent});
  } else {
    a.kv_b = weights(p.h, weight, {n_heads * (nope + value), latent});
  }
  a.cache = p.cache;
  a.step = p.step;
  a.out = p.h.make(DType::kF32, {p.n_tokens(), n_heads * value});
  a.scale = 0.1F;
  a.form = AttentionForm::kAbsorbed;
  return a;
}

std::vector<float> run_latent(const LatentAttentionArgs& host) {
  OnDevice device;
  const LatentAttentionArgs a = device.node(host);
  device.workspace(cuda::latent_attention_workspace(a));
  const int64_t n_tokens = a.out.dim(0), width = a.out.dim(1);
  HostTensors h(1);
  const Tensor q = device.poisoned(h.make(DType::kI8, {n_tokens, width})),
               scales = device.poisoned(h.make(DType::kI64, {n_tokens, std::max<int64_t>(1, width / 32)}));
  const bool in_blocks = a.value_dim() % 32 == 0;
  cuda::latent_attention(a, {q.as<int8_t>(), scales.as<cuda::ActScale>(), width}, device.c);
  const std::vector<float> out = device.fetch<float>(a.out);
  if (in_blocks) {  // the same in int8
    const std::vector<int8_t> codes = device.fetch<int8_t>(q);
    const std::vector<cuda::ActScale> steps = device.fetch<cuda::ActScale>(scales);
    for (size_t i = 0; i < codes.size(); ++i)
      REQUIRE(std::fabs(out[i] - steps[i / 32].d * static_cast<float>(codes[i])) <= 0.5001F * steps[i / 32].d);
  }
  return out;
}

}  // namespace

TEST_CASE("cuda: pieces cover every row once, at every length") {
  for (const int n_groups : {1, 2, 8, 16, 128}) {
    const int most = cuda::most_pieces(n_groups);
    for (const int tile : {8, 32}) {
      for (int n = 1; n < 200000; n += n < 5000 ? 1 : 977) {
        const int each = cuda::rows_each(n, most, tile), used = cuda::pieces_used(n, each);
        REQUIRE((each % tile == 0 && used <= most && used <= cuda::pieces_reserved((n + 63) / 64 * 64, most) &&
                 (used - 1) * each < n && used * each >= n));
      }
    }
  }
}

TEST_CASE("cuda: latent attention agrees with the reference at DeepSeek's sizes") {
  struct Case {
    int64_t n_heads;
    DType cache, weight;
    bool split_weights;
    std::vector<Part> parts;
  };
  const Case cases[] = {
      {16, DType::kBF16, DType::kQ8_0, false, {{0, 1}}},
      {16, DType::kBF16, DType::kQ4_K, false, {{62, 2}, {130, 1}}},  // a page border inside, three pages
      {16, DType::kQ8_0, DType::kQ8_0, true, {{64, 1}}},
      {16, DType::kF8_E4M3, DType::kF32, false, {{95, 1}}},
      {16, DType::kF32, DType::kBF16, false, {{63, 2}}},
      {16, DType::kF16, DType::kQ6_K, false, {{31, 1}}},
      {20, DType::kBF16, DType::kQ8_0, false, {{70, 1}}},  // heads that do not fill the last group
      {128, DType::kBF16, DType::kQ8_0, true, {{33, 1}}},  // V3
  };
  for (const Case& c : cases) {
    CAPTURE(c.n_heads);
    CAPTURE(dtype_name(c.cache));
    CAPTURE(dtype_name(c.weight));
    Paged p(c.parts, 576, c.cache, 4);
    const LatentAttentionArgs a = latent_problem(p, c.n_heads, 128, 64, 128, 512, c.weight, c.split_weights);
    run_reference(a);
    // Queries and weights of rows round to bf16 for the tensor cores; f32 and f16 caches stay in f32.
    // Of what queries and weights are rounded to: nothing, f16, bf16.
    const double most = c.cache == DType::kF32 ? 1e-5 : c.cache == DType::kF16 ? 1e-3 : 1e-2;
    CHECK(worst_difference(run_latent(a), a.out.as<float>()) < most);
  }
}

TEST_CASE("cuda: latent attention of other sizes, every weight type") {
  for (const DType weight : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ4_0, DType::kQ4_1,
                             DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kIQ4_NL, DType::kMXFP4}) {
    for (const bool split : {false, true}) {
      CAPTURE(dtype_name(weight));
      CAPTURE(split);
      Paged p({{5, 1}, {66, 2}}, 64 + 16, DType::kF32, 2);
      const LatentAttentionArgs a = latent_problem(p, 3, 32, 16, 24, 64, weight, split);
      run_reference(a);
      CHECK(worst_difference(run_latent(a), a.out.as<float>()) < 1e-5);
    }
  }
  for (const DType weight :
       {DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_XS, DType::kIQ2_XXS,
        DType::kIQ2_XS, DType::kIQ2_S, DType::kIQ3_XXS, DType::kIQ3_S, DType::kIQ1_S, DType::kIQ1_M}) {
    CAPTURE(dtype_name(weight));
    Paged p({{40, 1}}, 256 + 32, DType::kF32, 2);
    const LatentAttentionArgs a = latent_problem(p, 2, 16, 32, 16, 256, weight, false);
    run_reference(a);
    CHECK(worst_difference(run_latent(a), a.out.as<float>()) < 1e-5);
  }
}

TEST_CASE("cuda: a token's attention is the same bits in any company and any size of step") {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    CAPTURE(dtype_name(type));
    const bool is_mma = type == DType::kBF16;
    const int64_t latent = is_mma ? 512 : 64, rope = is_mma ? 64 : 16;
    Paged p({{180, 20}}, latent + rope, type, 4);  // folded by one block
    const LatentAttentionArgs all = latent_problem(p, 2, 16, rope, 8, latent, DType::kF32, false);
    const std::vector<float> together = run_latent(all);
    for (const int64_t t : {int64_t{0}, int64_t{12}, int64_t{19}}) {
      LatentAttentionArgs one = all;
      one.q = all.q.slice(t, 1), one.out = all.out.slice(t, 1);
      one.step.positions = Tensor(DType::kI32, {1}, all.step.positions.as<int32_t>() + t);
      one.step.sequence_of = Tensor(DType::kI32, {1}, all.step.sequence_of.as<int32_t>() + t);
      const std::vector<float> alone = run_latent(one);  // a block for each piece
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + t * 16));
    }
  }
}

TEST_CASE("cuda: multi-head attention agrees with the reference") {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3}) {
    for (const auto& [n_heads, n] : {std::pair<int64_t, int64_t>{2, 128}, {3, 32}, {1, 256}}) {
      CAPTURE(dtype_name(type));
      CAPTURE(n);
      Paged p({{0, 3}, {126, 2}}, 2 * n_heads * n, type, 4);
      const MultiHeadAttentionArgs host{p.h.floats({p.n_tokens(), n_heads, n}), p.cache, p.step,
                                        p.h.make(DType::kF32, {p.n_tokens(), n_heads * n}), 0.09F};
      OnDevice device;
      const MultiHeadAttentionArgs a = device.node(host);
      device.workspace(cuda::multi_head_attention_workspace(a));
      cuda::multi_head_attention(a, device.c);
      run_reference(host);
      CHECK(worst_difference(device.fetch<float>(a.out), host.out.as<float>()) < 1e-5);
    }
  }
  Paged p({{190, 18}}, 2 * 2 * 64, DType::kBF16, 4);
  const MultiHeadAttentionArgs host{p.h.floats({18, 2, 64}), p.cache, p.step, p.h.make(DType::kF32, {18, 128}), 0.1F};
  OnDevice device;
  const MultiHeadAttentionArgs a = device.node(host);
  device.workspace(cuda::multi_head_attention_workspace(a));
  cuda::multi_head_attention(a, device.c);
  run_reference(host);
  CHECK(worst_difference(device.fetch<float>(a.out), host.out.as<float>()) < 1e-5);
}
