#include "attention_problem.h"

#include <doctest/doctest.h>

#include <array>

#include "cpu/fast/attention_isa.h"

namespace fathom {
namespace {

using namespace testing;

struct Problem {
  PagedStep paged;
  MultiHeadAttentionArgs args;

  Problem(int64_t heads, int64_t head_dim, std::vector<Sequence> sequences, DType cache, int64_t page_tokens = 64,
          uint32_t seed = 1)
      : paged(std::move(sequences), page_tokens, 2 * heads * head_dim, cache, seed) {
    args.q = paged.gaussian(DType::kF32, {paged.n_tokens(), heads, head_dim}, 1.0F);
    args.cache = paged.cache();
    args.step = paged.step();
    args.out = paged.tensor(DType::kF32, {paged.n_tokens(), heads * head_dim});
    args.scale = 2.0F / std::sqrt(static_cast<float>(head_dim));
  }

  std::vector<double> oracle() const {
    const int64_t heads = args.q.dim(1), n = args.q.dim(2);
    const std::vector<double> rows = decoded(args.cache), q = decoded(args.q);
    std::vector<double> out;
    for (int64_t t = 0; t < paged.n_tokens(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> scores;
        for (int64_t s = 0; s <= args.step.positions.as<int32_t>()[t]; ++s) {
          const double* key = row_of(paged, rows, t, s) + h * n;
          double score = 0;
          for (int64_t i = 0; i < n; ++i) score += q[static_cast<size_t>((t * heads + h) * n + i)] * key[i];
          scores.push_back(score * static_cast<double>(args.scale));
        }
        const std::vector<double> mixed = softmax_mix(
            std::move(scores), [&](int64_t s) { return row_of(paged, rows, t, s) + (heads + h) * n; }, n);
        out.insert(out.end(), mixed.begin(), mixed.end());
      }
    }
    return out;
  }

  std::vector<float> reference(int n_threads = 2) const {
    return run_attention(args, cpu::reference::multi_head_attention,
                         cpu::reference::multi_head_attention_workspace(args, n_threads), nullptr, n_threads);
  }
  std::vector<float> fast(const std::string& isa, int n_threads = 2) const {
    const cpu::MatmulKernels* kernels = cpu::matmul_kernels(isa);
    return run_attention(args, cpu::fast::multi_head_attention,
                         cpu::fast::multi_head_attention_workspace(args, *kernels, n_threads), kernels, n_threads);
  }
};

std::vector<Sequence> several() { return {{0, 1}, {62, 1}, {63, 1}, {64, 3}, {0, 65}, {130, 7}, {200, 1}}; }

TEST_CASE("reference multi-head attention equals the oracle on every cache type and at odd sizes") {
  for (const DType cache : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ8_0}) {
    CAPTURE(dtype_name(cache));
    const Problem p(4, 16, several(), cache);
    CHECK(relative_rms(p.reference(), p.oracle()) < 1e-6);
  }
  const Problem odd(3, 10, {{0, 5}, {70, 1}}, DType::kF16, 7);
  CHECK(relative_rms(odd.reference(), odd.oracle()) < 1e-6);
  const Problem real(16, 128, {{66, 2}}, DType::kBF16);
  CHECK(relative_rms(real.reference(), real.oracle()) < 1e-6);
}

TEST_CASE("fast multi-head attention equals the oracle on every cache type and at odd sizes") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    CAPTURE(isa);
    for (const DType cache : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ8_0}) {
      CAPTURE(dtype_name(cache));
      const bool floats = cpu::fast::attention_kernels(isa, cache).pack == 1;
      for (const auto& [heads, head_dim, page_tokens] :
           {std::array<int64_t, 3>{4, 16, 64}, {16, 128, 64}, {3, 10, 7}, {5, 13, 16}}) {
        if (cache == DType::kQ8_0 && head_dim * heads % 32 != 0) continue;
        CAPTURE(head_dim);
        const Problem p(heads, head_dim, several(), cache, page_tokens);
        // bf16 operands round queries and weights of the rows to 2^-9.
        CHECK(relative_rms(p.fast(isa), p.oracle()) < (floats ? 1e-6 : 0.006));
      }
    }
  }
}

TEST_CASE("fast multi-head attention gives the same bits on any number of threads and for any batch") {
  for (const std::string& isa : cpu::matmul_isa_names()) {
    Problem p(16, 128, {{700, 3}, {0, 1}, {130, 40}}, DType::kBF16);
    const std::vector<float> one = p.fast(isa, 1);
    for (const int n_threads : {2, 3, 8}) CHECK(p.fast(isa, n_threads) == one);
    p.args.q = p.args.q.slice(0, 3), p.args.out = p.args.out.slice(0, 3);
    p.args.step.positions.shape = p.args.step.sequence_of.shape = {3};
    CHECK(p.fast(isa) == std::vector<float>(one.begin(), one.begin() + 3 * 16 * 128));
  }
}

}  // namespace
}  // namespace fathom
