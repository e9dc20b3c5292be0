// The lightning indexer: keys on their way into the cache, which rows tokens choose, and attention to those alone.
#include <tuple>

#include "core/quant/dequantize.h"
#include "paged.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

const DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};

std::vector<int32_t> as_ints(const Tensor& t) { return {t.as<int32_t>(), t.as<int32_t>() + t.shape.n_elements()}; }

std::vector<int32_t> run_index(const IndexRowsArgs& host) {
  OnDevice device;
  const IndexRowsArgs a = device.node(host);
  device.workspace(cuda::index_rows_workspace(a));
  cuda::index_rows(a, device.c);
  const Tensor counts(DType::kI32, {static_cast<int64_t>(cuda::kIndexCountBytes / sizeof(int32_t))},
                      device.c.index_counts);
  const std::vector<int32_t> left = device.fetch<int32_t>(counts);
  REQUIRE(std::all_of(left.begin(), left.end(), [](int32_t n) { return n == 0; }));
  return device.fetch<int32_t>(a.chosen);
}

/// Small integers: sums are exact in any order, and many are equal.
Tensor integers(HostTensors& h, Shape shape) {
  const Tensor t = h.make(DType::kF32, shape);
  for (int64_t i = 0; i < shape.n_elements(); ++i) t.as<float>()[i] = static_cast<float>(h.below(5) - 2);
  return t;
}

/// `exact`: numbers whose scores are the same whoever adds them up.
IndexRowsArgs index_problem(Paged& p, const std::vector<Part>& parts, int64_t n_heads, int64_t dim, DType type,
                            int tokens_per_row, int64_t top_k, bool exact) {
  auto numbers = [&, exact](Shape shape) { return exact ? integers(p.h, shape) : p.h.floats(shape); };
  IndexRowsArgs a;
  a.q = numbers({p.n_tokens(), n_heads, dim});
  a.head_weights = numbers({p.n_tokens(), n_heads});
  a.cache = rows_of_tokens(p, parts, dim, type, tokens_per_row, [&] { return numbers({dim}); });
  a.step = p.step;
  a.tokens_per_row = tokens_per_row;
  a.chosen = p.h.make(DType::kI32, {p.n_tokens(), top_k});
  return a;
}

/// The lists are as they have to be but for rows whose scores come within `slack` of the last chosen one's.
void check_choice(const IndexRowsArgs& a, const std::vector<int32_t>& chosen, double slack) {
  const int64_t top_k = a.chosen.dim(1), n_heads = a.q.dim(1), dim = a.q.dim(2), page_rows = a.cache.dim(1);
  for (int64_t t = 0; t < a.q.dim(0); ++t) {
    CAPTURE(t);
    const int64_t n = (a.step.positions.as<int32_t>()[t] + 1) / a.tokens_per_row;
    const int32_t* list = chosen.data() + t * top_k;
    std::vector<double> scores;
    for (int64_t w = 0; w < n; ++w) {
      const int32_t page = a.step.page_table.row_as<int32_t>(a.step.sequence_of.as<int32_t>()[t])[w / page_rows];
      std::vector<float> row(static_cast<size_t>(dim));
      dequantize_row(a.cache.dtype, cpu::cache_row(a.cache, page * page_rows + w % page_rows), row.data(), dim);
      double score = 0;
      for (int64_t h = 0; h < n_heads; ++h) {
        double dot = 0;
        for (int64_t i = 0; i < dim; ++i)
          dot += static_cast<double>(a.q.row_as<float>(t)[h * dim + i]) * static_cast<double>(row[i]);
        score += static_cast<double>(a.head_weights.row_as<float>(t)[h]) * std::max(dot, 0.0);
      }
      scores.push_back(score);
    }
    std::vector<bool> is_chosen(static_cast<size_t>(n), false);
    for (int64_t i = 0; i < top_k; ++i) {
      if (i >= n) {
        REQUIRE(list[i] == -1);
        continue;
      }
      REQUIRE((list[i] >= 0 && list[i] < n && (i == 0 || list[i] > list[i - 1])));
      is_chosen[static_cast<size_t>(list[i])] = true;
    }
    double least = HUGE_VAL, most = -HUGE_VAL, size = 0;
    for (int64_t w = 0; w < n; ++w) {
      size = std::max(size, std::fabs(scores[w]));
      (is_chosen[w] ? least : most) = is_chosen[w] ? std::min(least, scores[w]) : std::max(most, scores[w]);
    }
    REQUIRE(most <= least + slack * size);
  }
}

}  // namespace

TEST_CASE("cuda: a layer norm agrees with the reference") {
  for (const auto& [t, n] : {std::pair<int64_t, int64_t>{1, 128}, {5, 33}, {2, 1000}, {3, 1}}) {
    CAPTURE(n);
    HostTensors h(31);
    OnDevice device;
    const LayerNormArgs norm{h.floats({t, n}, 3), h.floats({n}), h.floats({n}), h.make(DType::kF32, {t, n}), 1e-6F};
    const LayerNormArgs on = device.node(norm);
    cuda::layer_norm(on, device.c);
    run_reference(norm);
    CHECK(worst_difference(device.fetch<float>(on.out), norm.out.as<float>()) < 1e-6);
  }
}

TEST_CASE("cuda: rows come into the cache as they are, and keys normed and rotated in one launch or three") {
  for (const DType type : kCacheTypes) {
    for (const auto& [n, pairs] : {std::pair<int64_t, int64_t>{128, 32}, {64, 16}, {160, 8}}) {
      CAPTURE(dtype_name(type));
      CAPTURE(n);
      const int64_t t = 4;
      const int32_t slots[] = {63, 64, 0, 130};
      HostTensors h(32);
      OnDevice device, whole;
      const LayerNormArgs norm{h.floats({t, n}), h.floats({n}), h.floats({n}), h.make(DType::kF32, {t, n}), 1e-6F};
      const Tensor table = h.floats({t, pairs, 2});
      const RotateHeadsArgs rotate{norm.out.reshaped({t, 1, n}), table, h.make(DType::kF32, {t, 1, n}), 0,
                                   RopePairing::kHalves};
      const StoreRowsArgs store{rotate.out.reshaped({t, n}), h.ints({t}, [&](int64_t i) { return slots[i]; }),
                                h.bytes(type, {3, 64, n})};
      // One by one.
      const LayerNormArgs norm_on = device.node(norm);
      RotateHeadsArgs rotate_on = device.node(rotate);
      rotate_on.x = norm_on.out.reshaped({t, 1, n});
      StoreRowsArgs store_on = device.node(store);
      store_on.x = rotate_on.out.reshaped({t, n});
      cuda::layer_norm(norm_on, device.c);
      run_side_by_side(device, rotate_on);
      cuda::store_rows(store_on, device.c);
      const std::vector<std::byte> apart = device.fetch<std::byte>(store_on.cache);
      // All at once.
      const StoreRowsArgs store_whole = whole.node(store);
      run_side_by_side(whole, whole.node(norm), whole.node(rotate), store_whole);
      CHECK(whole.fetch<std::byte>(store_whole.cache) == apart);
      // The same float rows by the reference: every byte, around them too.
      const std::vector<float> rotated = device.fetch<float>(rotate_on.out);
      std::copy(rotated.begin(), rotated.end(), store.x.as<float>());
      run_reference(store);
      CHECK(std::memcmp(apart.data(), store.cache.data, apart.size()) == 0);
    }
  }
}

TEST_CASE("cuda: the rows that the indexer chooses are the reference's, equal scores included") {
  struct Case {
    int64_t n_heads, dim;
    int tokens_per_row;
    int64_t top_k;
    std::vector<Part> parts;
  };
  const Case cases[] = {
      {64, 128, 1, 32, {{62, 3}, {30, 2}, {150, 1}}},  // V3.2's heads; page borders; one that need not choose yet
      {64, 128, 4, 16, {{62, 3}, {255, 2}}},           // V4's
      {20, 128, 1, 7, {{70, 1}}},                      // heads that do not fill the last warp
      {3, 40, 1, 5, {{63, 2}}},                        // any sizes, in f32
      {2, 32, 4, 1, {{0, 30}}},                        // a prompt
      {4, 32, 1, 64, {{129, 18}}},
  };
  for (const Case& k : cases) {
    for (const DType type : kCacheTypes) {
      if (type == DType::kQ8_0 && k.dim % 32 != 0) continue;
      CAPTURE(dtype_name(type));
      CAPTURE(k.n_heads);
      CAPTURE(k.tokens_per_row);
      Paged p(k.parts, 8, DType::kF32, 8);
      const IndexRowsArgs exact = index_problem(p, k.parts, k.n_heads, k.dim, type, k.tokens_per_row, k.top_k, true);
      const std::vector<int32_t> got = run_index(exact);
      if (type == DType::kQ8_0) {  // steps of a 127th: sums are no longer exact
        check_choice(exact, got, 1e-6);
      } else {
        run_reference(exact);
        CHECK(got == as_ints(exact.chosen));
      }
      const IndexRowsArgs any = index_problem(p, k.parts, k.n_heads, k.dim, type, k.tokens_per_row, k.top_k, false);
      check_choice(any, run_index(any), 2e-6);
    }
  }
}

TEST_CASE("cuda: queries of any size choose as exactly as in f32") {
  // f16 alone would overflow, or lose all digits.
  for (const float size : {1e-9F, 3e-3F, 1e9F}) {
    const std::vector<Part> parts = {{90, 1}};
    Paged p(parts, 8, DType::kF32, 8);
    const IndexRowsArgs a = index_problem(p, parts, 16, 128, DType::kF16, 1, 20, false);
    for (int64_t i = 0; i < a.q.shape.n_elements(); ++i) a.q.as<float>()[i] *= size;
    check_choice(a, run_index(a), 2e-6);
  }
}

TEST_CASE("cuda: a token chooses the same rows in any company, in any length of the page table, in waves") {
  const std::vector<Part> parts = {{200, 20}, {3, 1}};
  Paged p(parts, 8, DType::kF32, 4);
  const IndexRowsArgs all = index_problem(p, parts, 3, 32, DType::kF16, 1, 11, false);
  const std::vector<int32_t> together = run_index(all);
  for (const int64_t width : {int64_t{4}, int64_t{16384}}) {  // the second: more scores than are kept at a time
    IndexRowsArgs wide = all;
    wide.step.page_table = p.h.ints({2, width}, [&](int64_t i) {
      return i % width < 4 ? p.step.page_table.row_as<int32_t>(i / width)[i % width] : -1;
    });
    if (width > 4) {
      CHECK(cuda::index_rows_workspace(wide) == size_t{64} << 20);
      CHECK(run_index(wide) == together);
    }
    for (const int64_t t : {int64_t{0}, int64_t{19}, int64_t{20}}) {
      IndexRowsArgs one = wide;
      one.q = all.q.slice(t, 1), one.head_weights = all.head_weights.slice(t, 1), one.chosen = all.chosen.slice(t, 1);
      one.step.positions = Tensor(DType::kI32, {1}, all.step.positions.as<int32_t>() + t);
      one.step.sequence_of = Tensor(DType::kI32, {1}, all.step.sequence_of.as<int32_t>() + t);
      const std::vector<int32_t> alone = run_index(one);
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + t * 11));
    }
  }
}

TEST_CASE("cuda: tokens that choose in company and twice in a row choose what they choose alone") {
  // Several stretches of rows, some tokens with nothing to choose; the second run meets what the first one left.
  const std::vector<Part> parts = {{9000, 2}, {20, 1}, {4095, 1}};
  Paged p(parts, 4, DType::kF32, 142);
  IndexRowsArgs all = index_problem(p, parts, 2, 8, DType::kF16, 1, 100, true);
  OnDevice device;
  const IndexRowsArgs a = device.node(all);
  device.workspace(cuda::index_rows_workspace(a));
  run_reference(all);
  for (int i = 0; i < 2; ++i) {
    cuda::index_rows(a, device.c);
    CHECK(device.fetch<int32_t>(a.chosen) == as_ints(all.chosen));
  }
}

TEST_CASE("cuda: of a hundred thousand rows the right ones are chosen") {
  const int64_t n = 100000;
  const std::vector<Part> parts = {{n - 1, 1}};
  Paged p(parts, 1, DType::kF32, (n + 63) / 64);
  for (const int64_t top_k : {int64_t{1}, int64_t{2048}, n - 1}) {
    CAPTURE(top_k);
    IndexRowsArgs a = index_problem(p, parts, 1, 1, DType::kF32, 1, top_k, false);
    a.q.as<float>()[0] = 1, a.head_weights.as<float>()[0] = -1;  // from zero down: half of all scores are equal
    run_reference(a);
    CHECK(run_index(a) == as_ints(a.chosen));
  }
}

TEST_CASE(
    "cuda: attention to chosen rows agrees with the reference, and to all of them is attention without a choice") {
  struct Case {
    int64_t n_heads, nope, rope, value, latent;
    DType cache;
    int64_t top_k;
    std::vector<Part> parts;
  };
  const Case cases[] = {
      {128, 128, 64, 128, 512, DType::kF16, 70, {{130, 1}}},  // V3.2
      {16, 32, 64, 32, 512, DType::kF16, 33, {{62, 3}, {20, 1}}},
      {16, 32, 64, 32, 512, DType::kBF16, 100, {{200, 17}}},  // folded by one block
      {16, 32, 64, 32, 512, DType::kQ8_0, 40, {{90, 1}}},
      {16, 32, 64, 32, 512, DType::kF8_E4M3, 40, {{90, 1}}},
      {3, 16, 16, 8, 64, DType::kF32, 9, {{63, 2}, {5, 1}}},
      {3, 16, 16, 8, 64, DType::kF16, 100, {{190, 18}}},
  };
  for (const Case& k : cases) {
    CAPTURE(dtype_name(k.cache));
    CAPTURE(k.top_k);
    Paged p(k.parts, k.latent + k.rope, k.cache, 8);
    const int64_t t = p.n_tokens();
    LatentAttentionArgs a;
    a.q = p.h.floats({t, k.n_heads, k.nope + k.rope});
    a.kv_b = p.h.floats({k.n_heads * (k.nope + k.value), k.latent}, 1.0F / std::sqrt(static_cast<float>(k.latent)));
    a.cache = p.cache, a.step = p.step, a.scale = 0.1F, a.form = AttentionForm::kAbsorbed;
    a.out = p.h.make(DType::kF32, {t, k.n_heads * k.value});
    auto run = [&](const Tensor& chosen) {
      LatentAttentionArgs host = a;
      host.chosen = chosen;
      OnDevice device;
      const LatentAttentionArgs on = device.node(host);
      device.workspace(cuda::latent_attention_workspace(on));
      cuda::latent_attention(on, {}, device.c);
      return device.fetch<float>(on.out);
    };
    // Every third row and the last ones, as many as top_k.
    const Tensor some = p.h.ints({t, k.top_k}, [](int64_t) { return -1; });
    for (int64_t i = 0; i < t; ++i) {
      const int64_t n = a.step.positions.as<int32_t>()[i] + 1;
      int64_t left = std::min(n, k.top_k);
      for (int64_t w = 0, at = 0; w < n && left > 0; ++w) {
        if (w % 3 != 1 && n - w > left) continue;
        some.row_as<int32_t>(i)[at++] = static_cast<int32_t>(w);
        --left;
      }
    }
    LatentAttentionArgs sparse = a;
    sparse.chosen = some;
    run_reference(sparse);
    const bool is_rounded = k.cache != DType::kF32 && k.latent == 512;
    CHECK(worst_difference(run(some), a.out.as<float>()) < (is_rounded ? 1.5e-2 : 1e-5));
    const int64_t enough = 256;
    const Tensor all = p.h.ints({t, enough}, [&](int64_t i) {
      return i % enough <= a.step.positions.as<int32_t>()[i / enough] ? static_cast<int32_t>(i % enough) : -1;
    });
    CHECK(run(all) == run({}));
  }
}
