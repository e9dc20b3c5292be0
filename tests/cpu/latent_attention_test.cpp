#include "attention_problem.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "cpu/fast/attention_isa.h"

namespace fathom {
namespace {

using namespace testing;

struct Dims {
  int64_t heads, nope, rope, value, latent;
};
constexpr Dims kLite{16, 128, 64, 128, 512}, kWide{32, 128, 64, 128, 512}, kSmall{4, 32, 16, 32, 64},
    kOdd{3, 24, 8, 20, 32}, kOdder{5, 17, 6, 11, 37};

enum class Dialect { kTogether, kApart };

/// A step of latent attention with weights of deviation 1/sqrt(C), so that keys, like the queries, have deviation 1.
struct Problem {
  PagedStep paged;
  LatentAttentionArgs args;

  Problem(Dims d, std::vector<Sequence> sequences, Dialect dialect, DType weights, DType cache,
          int64_t page_tokens = 64, uint32_t seed = 1)
      : paged(std::move(sequences), page_tokens, d.latent + d.rope, cache, seed) {
    const float deviation = 1.0F / std::sqrt(static_cast<float>(d.latent));
    auto make = [&](Shape shape) {
      if (weights == DType::kQ4_K) return paged.random_blocks(weights, shape, {0, 2}, deviation / 150);
      if (weights == DType::kQ4_0) return paged.random_blocks(weights, shape, {0}, deviation / 5);
      return paged.gaussian(weights, shape, deviation);
    };
    args.q = paged.gaussian(DType::kF32, {paged.n_tokens(), d.heads, d.nope + d.rope}, 1.0F);
    if (dialect == Dialect::kTogether) {
      args.kv_b = make({d.heads * (d.nope + d.value), d.latent});
    } else {
      args.k_b = make({d.heads, d.latent, d.nope});
      args.v_b = make({d.heads, d.value, d.latent});
    }
    args.cache = paged.cache();
    args.step = paged.step();
    args.out = paged.tensor(DType::kF32, {paged.n_tokens(), d.heads * d.value});
    args.scale = 2.0F / std::sqrt(static_cast<float>(d.nope + d.rope));
  }

  /// Every token chooses top_k of its visible rows at random, all where there are no more.
  void choose(int64_t top_k) {
    args.chosen = paged.tensor(DType::kI32, {paged.n_tokens(), top_k});
    std::mt19937 random(9);
    for (int64_t t = 0; t < paged.n_tokens(); ++t) {
      std::vector<int32_t> visible(static_cast<size_t>(args.step.positions.as<int32_t>()[t] + 1));
      std::iota(visible.begin(), visible.end(), 0);
      int32_t* chosen = args.chosen.row_as<int32_t>(t);
      int32_t* end = std::sample(visible.begin(), visible.end(), chosen, top_k, random);
      std::fill(end, chosen + top_k, -1);
    }
  }

  std::vector<int64_t> seen_rows(int64_t t) const {
    std::vector<int64_t> rows;
    if (args.chosen) {
      for (int64_t i = 0; i < args.chosen.dim(1) && args.chosen.row_as<int32_t>(t)[i] >= 0; ++i)
        rows.push_back(args.chosen.row_as<int32_t>(t)[i]);
    } else {
      for (int64_t s = 0; s <= args.step.positions.as<int32_t>()[t]; ++s) rows.push_back(s);
    }
    return rows;
  }

  /// The expanded form in float64: keys and values of every head from the latents.
  std::vector<double> oracle() const {
    const int64_t n = args.nope_dim(), r = args.rope_dim(), v = args.value_dim(), c = args.latent_dim();
    const std::vector<double> rows = decoded(args.cache), q = decoded(args.q);
    const std::vector<double> kv_b = args.kv_b ? decoded(args.kv_b) : std::vector<double>();
    const std::vector<double> k_b = args.k_b ? decoded(args.k_b) : std::vector<double>();
    const std::vector<double> v_b = args.v_b ? decoded(args.v_b) : std::vector<double>();
    std::vector<double> out;
    for (int64_t t = 0; t < paged.n_tokens(); ++t) {
      for (int64_t h = 0; h < args.n_heads(); ++h) {
        auto w_uk = [&](int64_t i, int64_t j) {
          return args.kv_b ? kv_b[static_cast<size_t>((h * (n + v) + i) * c + j)]
                           : k_b[static_cast<size_t>((h * c + j) * n + i)];
        };
        auto w_uv = [&](int64_t i, int64_t j) {
          return args.kv_b ? kv_b[static_cast<size_t>((h * (n + v) + n + i) * c + j)]
                           : v_b[static_cast<size_t>((h * v + i) * c + j)];
        };
        const double* query = q.data() + (t * args.n_heads() + h) * (n + r);
        std::vector<double> latent_query(static_cast<size_t>(c));
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < c; ++j) latent_query[static_cast<size_t>(j)] += query[i] * w_uk(i, j);
        }
        const std::vector<int64_t> seen = seen_rows(t);
        std::vector<double> scores;
        for (const int64_t s : seen) {
          const double* row = row_of(paged, rows, t, s);
          double score = 0;
          for (int64_t j = 0; j < c; ++j) score += latent_query[static_cast<size_t>(j)] * row[j];
          for (int64_t j = 0; j < r; ++j) score += query[n + j] * row[c + j];
          scores.push_back(score * static_cast<double>(args.scale));
        }
        const std::vector<double> latent = softmax_mix(
            std::move(scores), [&](int64_t i) { return row_of(paged, rows, t, seen[static_cast<size_t>(i)]); }, c);
        for (int64_t i = 0; i < v; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < c; ++j) sum += w_uv(i, j) * latent[static_cast<size_t>(j)];
          out.push_back(sum);
        }
      }
    }
    return out;
  }

  std::vector<float> reference(AttentionForm form, int n_threads = 2) {
    args.form = form;
    return run_attention(args, cpu::reference::latent_attention,
                         cpu::reference::latent_attention_workspace(args, n_threads), nullptr, n_threads);
  }
  std::vector<float> fast(const std::string& isa, AttentionForm form, int n_threads = 2) {
    args.form = form;
    const cpu::MatmulKernels* kernels = cpu::matmul_kernels(isa);
    return run_attention(args, cpu::fast::latent_attention,
                         cpu::fast::latent_attention_workspace(args, *kernels, n_threads), kernels, n_threads);
  }
};

constexpr AttentionForm kBothForms[] = {AttentionForm::kExpanded, AttentionForm::kAbsorbed};
constexpr DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ8_0};

std::vector<Sequence> several() { return {{0, 1}, {62, 1}, {63, 1}, {64, 3}, {0, 65}, {130, 7}, {200, 1}}; }

/// Rows of q8_0 are blocks of 32.
Dims small_dims(DType cache) { return cache == DType::kQ8_0 ? Dims{4, 32, 32, 32, 64} : kSmall; }

/// Sums in double over exactly decoded numbers: a few roundings to float remain, 2^-24 each, amplified by scores of
/// about 4.
constexpr double kReferenceLimit = 2e-6;

TEST_CASE("reference latent attention equals the oracle in both forms, both weight dialects, on every cache type") {
  for (const DType cache : kCacheTypes) {
    for (const Dialect dialect : {Dialect::kTogether, Dialect::kApart}) {
      Problem p(small_dims(cache), several(), dialect, DType::kF32, cache);
      const std::vector<double> expected = p.oracle();
      for (const AttentionForm form : kBothForms) {
        CAPTURE(dtype_name(cache));
        CHECK(relative_rms(p.reference(form), expected) < kReferenceLimit);
      }
    }
  }
}

TEST_CASE("reference latent attention equals the oracle at V2-Lite's dimensions and at odd ones") {
  const struct {
    Dims dims;
    Dialect dialect;
    DType weights;
  } cases[] = {{kLite, Dialect::kTogether, DType::kQ4_K}, {kLite, Dialect::kApart, DType::kQ8_0},
               {kOdd, Dialect::kTogether, DType::kBF16},  {kOdd, Dialect::kApart, DType::kF16},
               {kOdder, Dialect::kTogether, DType::kF32}, {kOdder, Dialect::kApart, DType::kF32}};
  for (const auto& c : cases) {
    Problem p(c.dims, {{64, 2}, {0, 1}, {5, 3}}, c.dialect, c.weights, DType::kBF16);
    const std::vector<double> expected = p.oracle();
    for (const AttentionForm form : kBothForms) CHECK(relative_rms(p.reference(form), expected) < kReferenceLimit);
  }
}

TEST_CASE("reference latent attention over chosen rows equals the oracle over these rows") {
  for (const DType cache : kCacheTypes) {
    for (const int64_t top_k : {1, 3, 64, 1000}) {
      Problem p(small_dims(cache), several(), Dialect::kApart, DType::kF32, cache);
      p.choose(top_k);
      const std::vector<double> expected = p.oracle();
      for (const AttentionForm form : kBothForms) {
        INFO(dtype_name(cache), " top k ", top_k);
        CHECK(relative_rms(p.reference(form), expected) < kReferenceLimit);
      }
    }
  }
}

/// Largest relative error of the fast forms. Float operands leave sums of up to C + R products in f32. bf16 operands
/// are rounded to 2^-9 once (queries, weights of the rows) or twice (expanded keys); scores of deviation 2 carry that
/// into the weights: 0.002 to 0.005 measured. Quantized projections add activations rounded to int8, 0.4 % each: up to
/// 0.008 measured.
double fast_limit(const std::string& isa, DType cache, DType weights) {
  const bool floats = cpu::fast::attention_kernels(isa, cache).pack == 1;
  return (floats ? 2e-6 : 0.006) + (dtype_info(weights).is_quantized ? 0.01 : 0.0);
}

TEST_CASE("fast latent attention equals the oracle in both forms, both weight dialects, on every cache type") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const DType cache : kCacheTypes) {
      for (const Dialect dialect : {Dialect::kTogether, Dialect::kApart}) {
        Problem p(small_dims(cache), several(), dialect, DType::kF32, cache);
        const std::vector<double> expected = p.oracle();
        for (const AttentionForm form : kBothForms) {
          INFO(isa, " cache ", dtype_name(cache), " form ", static_cast<int>(form), " dialect ",
               static_cast<int>(dialect));
          CHECK(relative_rms(p.fast(isa, form), expected) < fast_limit(isa, cache, DType::kF32));
        }
      }
    }
  }
}

TEST_CASE("fast latent attention equals the oracle at V2-Lite's dimensions and at odd ones, on every weight type") {
  const struct {
    Dims dims;
    Dialect dialect;
    DType weights, cache;
  } cases[] = {{kLite, Dialect::kTogether, DType::kQ4_K, DType::kBF16},
               {kLite, Dialect::kApart, DType::kQ8_0, DType::kBF16},
               {kLite, Dialect::kApart, DType::kBF16, DType::kF16},
               {kLite, Dialect::kTogether, DType::kQ8_0, DType::kQ8_0},
               {kLite, Dialect::kApart, DType::kQ4_0, DType::kF8_E4M3},
               {kLite, Dialect::kTogether, DType::kF8_E4M3, DType::kF32},
               {kOdd, Dialect::kTogether, DType::kBF16, DType::kBF16},
               {kOdd, Dialect::kApart, DType::kF16, DType::kBF16},
               {kOdder, Dialect::kTogether, DType::kF32, DType::kBF16},
               {kOdder, Dialect::kApart, DType::kF32, DType::kBF16},
               {kOdder, Dialect::kTogether, DType::kF32, DType::kF16},
               {kOdder, Dialect::kApart, DType::kF32, DType::kF32}};
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const auto& c : cases) {
      for (const int64_t page_tokens : {64, 7}) {
        Problem p(c.dims, {{150, 2}, {0, 1}, {5, 20}, {63, 1}}, c.dialect, c.weights, c.cache, page_tokens);
        const std::vector<double> expected = p.oracle();
        for (const AttentionForm form : kBothForms) {
          INFO(isa, " weights ", dtype_name(c.weights), " cache ", dtype_name(c.cache), " form ",
               static_cast<int>(form), " heads ", c.dims.heads);
          const bool integers = form == AttentionForm::kAbsorbed && c.cache == DType::kQ8_0 && isa != "avx2";
          CHECK(relative_rms(p.fast(isa, form), expected) <
                fast_limit(isa, c.cache, c.weights) + (integers ? 0.013 : 0.0));
        }
      }
    }
  }
}

TEST_CASE("fast latent attention gives the same bits on any number of threads") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    Problem p(kLite, {{700, 3}, {0, 1}, {130, 40}}, Dialect::kTogether, DType::kQ4_K, DType::kBF16);
    for (const AttentionForm form : kBothForms) {
      const std::vector<float> one = p.fast(isa, form, 1);
      for (const int n_threads : {2, 3, 8}) CHECK(p.fast(isa, form, n_threads) == one);
    }
    // Three groups of slices: one thread takes them whole, several take slices.
    for (const DType cache : {DType::kBF16, DType::kQ8_0}) {
      Problem deep(kLite, {{2500, 1}, {300, 5}}, Dialect::kTogether, DType::kQ4_K, cache);
      const std::vector<float> one = deep.fast(isa, AttentionForm::kAbsorbed, 1);
      for (const int n_threads : {2, 5}) CHECK(deep.fast(isa, AttentionForm::kAbsorbed, n_threads) == one);
    }
  }
}

/// Whether token t of the step gets the bits alone that it has in `together`, the whole step's result.
bool same_alone(LatentAttentionArgs a, int64_t t, const std::string& isa, const std::vector<float>& together) {
  a.q = a.q.slice(t, 1), a.out = a.out.slice(t, 1);
  a.step.positions = Tensor(DType::kI32, {1}, a.step.positions.data + t * 4);
  a.step.sequence_of = Tensor(DType::kI32, {1}, a.step.sequence_of.data + t * 4);
  const cpu::MatmulKernels* kernels = cpu::matmul_kernels(isa);
  const std::vector<float> alone =
      run_attention(a, cpu::fast::latent_attention, cpu::fast::latent_attention_workspace(a, *kernels, 2), kernels, 2);
  return std::equal(alone.begin(), alone.end(), together.begin() + t * a.out.dim(1));
}

TEST_CASE("a token gets the same bits alone and in a step so large that partial results are kept in several waves") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    constexpr int64_t kNew = 330;
    for (const DType cache : {DType::kBF16, DType::kQ8_0}) {
      Problem p(kLite, {{4500, kNew}}, Dialect::kTogether, DType::kQ8_0, cache);
      const std::vector<float> together = p.fast(isa, AttentionForm::kAbsorbed);
      for (const int64_t t : {int64_t{0}, int64_t{200}, kNew - 1}) {
        LatentAttentionArgs a = p.args;
        a.form = AttentionForm::kAbsorbed;
        CHECK(same_alone(a, t, isa, together));
      }
    }
  }
}

/// Queries are rounded to int8 in blocks of 32: by 0.5 %, which moves scores of deviation s, and with them weights, by
/// 0.005 s; weights to 255ths of a slice's largest. Measured: 0.0013, 0.009 and 0.015 at deviations 0.1, 2 and 8.
TEST_CASE("products of integers over q8_0 pages stay near the oracle, whether weights are even or one outweighs all") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const auto& [dims, scale] : {std::pair{kLite, 0.1F}, {kLite, 2.0F}, {kLite, 8.0F}, {kWide, 2.0F}}) {
      Problem p(dims, {{1100, 1}, {0, 1}, {3, 2}, {254, 4}}, Dialect::kTogether, DType::kF32, DType::kQ8_0);
      p.args.scale = scale / std::sqrt(static_cast<float>(dims.nope + dims.rope));
      const bool integers = cpu::fast::absorbed_attention_kernels(isa, DType::kQ8_0, dims.heads, 576, 512).integers;
      CHECK(integers == (isa == "avx512" || isa == "avx_vnni"));
      INFO(isa, " heads ", dims.heads, " scale ", scale);
      const double limit =
          integers ? 0.001 + 0.006 * std::min(scale, 3.0F) : fast_limit(isa, DType::kQ8_0, DType::kF32);
      CHECK(relative_rms(p.fast(isa, AttentionForm::kAbsorbed), p.oracle()) < limit);
    }
  }
}

TEST_CASE("q8_0 rows go straight to operands with the bits of decoding and rounding") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    const cpu::AttentionKernels& kernels = cpu::fast::attention_kernels(isa, DType::kQ8_0);
    const cpu::PackRow pack = kernels.row_packer(static_cast<uint32_t>(DType::kQ8_0));
    if (pack == nullptr) continue;
    for (const int64_t n : {576, 64}) {
      std::mt19937 random(6);
      std::vector<std::byte> row(row_bytes(DType::kQ8_0, n));
      for (std::byte& b : row) b = static_cast<std::byte>(random() >> 8);
      for (size_t at = 1; at < row.size(); at += 34) row[at] &= std::byte{0xbf};  // finite scales
      std::vector<float> decoded(static_cast<size_t>(n));
      std::vector<uint32_t> expected(static_cast<size_t>(n) / 2), got(expected.size(), 1);
      cpu::fast::decode_row(kernels, DType::kQ8_0, row.data(), decoded.data(), n);
      kernels.pack_words(decoded.data(), 1.0F, expected.data(), n);
      pack(row.data(), got.data(), n);
      INFO(isa, " ", n);
      CHECK(got == expected);
    }
  }
}

TEST_CASE("fast latent attention over chosen rows equals the oracle over these rows, in both forms") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const DType cache : kCacheTypes) {
      for (const int64_t top_k : {1, 3, 64, 140, 1000}) {
        Problem p(small_dims(cache), several(), Dialect::kApart, DType::kF32, cache);
        p.choose(top_k);
        const std::vector<double> expected = p.oracle();
        for (const AttentionForm form : kBothForms) {
          INFO(isa, " cache ", dtype_name(cache), " form ", static_cast<int>(form), " top k ", top_k);
          CHECK(relative_rms(p.fast(isa, form), expected) < fast_limit(isa, cache, DType::kF32));
        }
      }
    }
    for (const Dims d : {kLite, kOdd, kOdder}) {
      Problem p(d, {{1500, 2}, {0, 1}, {5, 200}, {63, 1}}, Dialect::kTogether, DType::kF32, DType::kBF16);
      p.choose(130);
      const std::vector<double> expected = p.oracle();
      for (const AttentionForm form : kBothForms) {
        INFO(isa, " form ", static_cast<int>(form), " heads ", d.heads);
        CHECK(relative_rms(p.fast(isa, form), expected) < fast_limit(isa, DType::kBF16, DType::kF32));
      }
    }
  }
}

TEST_CASE("a token that may have all its rows gets the same bits with a choice and without") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const AttentionForm form : kBothForms) {
      for (const auto& [d, cache] : {std::pair{kLite, DType::kBF16}, {kLite, DType::kQ8_0}, {kOdd, DType::kBF16}}) {
        Problem p(d, {{300, 1}, {0, 37}, {1520, 5}, {64, 240}}, Dialect::kApart, DType::kBF16, cache);
        const std::vector<float> dense = p.fast(isa, form);
        p.choose(1525);  // all rows of every token
        CHECK(p.fast(isa, form) == dense);
        p.choose(304);
        const std::vector<float> sparse = p.fast(isa, form);
        const int64_t width = p.args.out.dim(1);
        for (int64_t t = 0; t < p.paged.n_tokens(); ++t) {
          const bool sees_all = p.args.step.positions.as<int32_t>()[t] < 304;
          INFO(isa, " form ", static_cast<int>(form), " token ", t);
          CHECK(std::equal(dense.begin() + t * width, dense.begin() + (t + 1) * width, sparse.begin() + t * width) ==
                sees_all);
        }
      }
    }
  }
}

TEST_CASE("a token that chooses gets the same bits alone, beside others and on any number of threads") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const auto& [d, cache] : {std::pair{kLite, DType::kBF16}, {kLite, DType::kQ8_0}, {kOdd, DType::kBF16}}) {
      Problem p(d, {{300, 1}, {0, 37}, {1520, 5}, {64, 240}}, Dialect::kApart, DType::kBF16, cache);
      p.choose(192);
      const std::vector<float> together = p.fast(isa, AttentionForm::kAbsorbed, 1);
      for (const int n_threads : {2, 5}) CHECK(p.fast(isa, AttentionForm::kAbsorbed, n_threads) == together);
      for (const int64_t t : {0, 20, 38, 42, 43, 200, 282}) {
        LatentAttentionArgs a = p.args;
        a.chosen = a.chosen.slice(t, 1);
        CHECK(same_alone(a, t, isa, together));
      }
    }
  }
}

TEST_CASE("rows of every type decode as dequantize_row does, from any block of a row on") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    const cpu::AttentionKernels& kernels = cpu::fast::float_attention_kernels(isa);
    std::mt19937 random(5);
    for (uint32_t id = 0; id <= static_cast<uint32_t>(DType::kF8_E4M3); ++id) {
      if (kernels.row_decoder(id) == nullptr) continue;
      const auto type = static_cast<DType>(id);
      constexpr int64_t kElements = 512;
      std::vector<std::byte> row(row_bytes(type, kElements));
      for (std::byte& b : row) b = static_cast<std::byte>(random() >> 8);
      std::vector<float> expected(kElements), got(kElements);
      dequantize_row(type, row.data(), expected.data(), kElements);
      cpu::fast::decode_row(kernels, type, row.data(), got.data(), kElements);
      for (size_t i = 0; i < expected.size(); ++i) {
        INFO(isa, " ", dtype_name(type), " element ", i);
        if (!std::isfinite(expected[i])) {
          CHECK(!std::isfinite(got[i]));
          continue;
        }
        // A block's products may be rounded in another order, and cancel: measure against the largest of the row's
        // block.
        float largest = 0;
        const size_t block = static_cast<size_t>(dtype_info(type).block_elements), begin = i / block * block;
        for (size_t j = begin; j < begin + block; ++j)
          largest = std::isfinite(expected[j]) ? std::max(largest, std::fabs(expected[j])) : largest;
        REQUIRE(std::fabs(got[i] - expected[i]) <= 4e-7F * largest + 1e-37F);
      }
    }
  }
}

TEST_CASE("a sequence gets the same bits alone and beside others") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    for (const auto& [form, cache] : {std::pair{AttentionForm::kExpanded, DType::kBF16},
                                      {AttentionForm::kAbsorbed, DType::kBF16},
                                      {AttentionForm::kAbsorbed, DType::kQ8_0}}) {
      Problem p(kLite, {{300, 1}, {0, 37}, {520, 5}, {64, 200}}, Dialect::kApart, DType::kQ8_0, cache);
      const std::vector<float> together = p.fast(isa, form);
      const LatentAttentionArgs all = p.args;
      int64_t first = 0;
      for (const Sequence& s : p.paged.sequences()) {
        auto part = [&](const Tensor& t) { return Tensor(t.dtype, {s.n_new}, t.data + first * 4); };
        p.args.q = all.q.slice(first, s.n_new), p.args.out = all.out.slice(first, s.n_new);
        p.args.step.positions = part(all.step.positions), p.args.step.sequence_of = part(all.step.sequence_of);
        const std::vector<float> alone = p.fast(isa, form);
        const auto begin = static_cast<size_t>(first * all.out.dim(1));
        CHECK(alone == std::vector<float>(together.begin() + static_cast<ptrdiff_t>(begin),
                                          together.begin() + static_cast<ptrdiff_t>(begin + alone.size())));
        first += s.n_new;
      }
    }
  }
}

TEST_CASE("a step without tokens does nothing") {
  Problem p(kOdd, {}, Dialect::kTogether, DType::kF32, DType::kBF16);
  CHECK(p.reference(AttentionForm::kAuto).empty());
  for (const std::string& isa : cpu::matmul_isa_names()) CHECK(p.fast(isa, AttentionForm::kAuto).empty());
}

}  // namespace
}  // namespace fathom
