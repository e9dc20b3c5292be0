// Matrix kernels of every type and instruction set against a float64 product of the decoded weights and activations.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/float_convert.h"
#include "core/quant/blocks.h"
#include "core/quant/dequantize.h"
#include "cpu/kernels.h"
#include "support/random_weights.h"

using namespace fathom;
using cpu::MatmulKernels;
using test::fill_weights;
using test::half_offsets;

namespace {

const DType kTypes[] = {DType::kF32,     DType::kF16,    DType::kBF16,   DType::kQ4_0,    DType::kQ4_1,  DType::kQ5_0,
                        DType::kQ5_1,    DType::kQ8_0,   DType::kQ2_K,   DType::kQ3_K,    DType::kQ4_K,  DType::kQ5_K,
                        DType::kQ6_K,    DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4,   DType::kIQ1_S, DType::kIQ1_M,
                        DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S,  DType::kIQ3_XXS, DType::kIQ3_S};

/// Memory that ends where an unreadable page begins.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t n) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (n + page - 1) / page * page + page;
    base_ = static_cast<std::byte*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED);
    REQUIRE(mprotect(base_ + mapped_ - page, page, PROT_NONE) == 0);
    data_ = base_ + mapped_ - page - n;
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  std::byte* data() { return data_; }

 private:
  std::byte* base_ = nullptr;
  std::byte* data_ = nullptr;
  size_t mapped_ = 0;
};

struct Problem {
  DType type;
  int64_t rows, k;
  int columns;
  std::vector<float> x;  // [columns, k]
  GuardedBytes w;
  std::vector<double> expected, scale;  // [columns, rows]: result, and the norm errors are measured against

  Problem(DType type_, int64_t rows_, int64_t k_, int columns_, unsigned seed)
      : type(type_), rows(rows_), k(k_), columns(columns_), w(static_cast<size_t>(rows_) * row_bytes(type_, k_)) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>(columns * k));
    for (float& v : x) v = normal(rng) * (rng() % 50 == 0 ? 8.0f : 1.0f);
    fill_weights(type, w.data(), static_cast<size_t>(rows) * row_bytes(type, k), rng);
  }

  /// The product in float64; activations as the kernels round them (one scale per 32, to nearest) for quantized types.
  void solve() {
    std::vector<float> act = x;
    if (dtype_info(type).is_quantized) {
      for (size_t b = 0; b < act.size(); b += 32) {
        float top = 0;
        for (size_t i = 0; i < 32; ++i) top = std::max(top, std::fabs(act[b + i]));
        for (size_t i = 0; i < 32; ++i)
          act[b + i] = top == 0 ? 0 : std::nearbyint(act[b + i] * (127.0f / top)) * (top / 127.0f);
      }
    }
    expected.assign(static_cast<size_t>(columns * rows), 0);
    scale = expected;
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t r = 0; r < rows; ++r) {
      dequantize_row(type, w.data() + static_cast<size_t>(r) * row_bytes(type, k), row.data(), k);
      for (int c = 0; c < columns; ++c) {
        double sum = 0, norm = 0;
        for (int64_t i = 0; i < k; ++i) {
          const double product = static_cast<double>(row[static_cast<size_t>(i)]) * act[static_cast<size_t>(c * k + i)];
          sum += product;
          norm += std::fabs(product);
        }
        expected[static_cast<size_t>(c * rows + r)] = sum;
        scale[static_cast<size_t>(c * rows + r)] = norm;
      }
    }
  }
};

/// Runs the kernel on rows [begin, end) and columns `which`; y is [which.size(), rows], NaN where nothing was written.
std::vector<float> run(const MatmulKernels& kernels, Problem& p, int64_t begin, int64_t end,
                       const std::vector<int>& which) {
  const size_t act_bytes = kernels.act_row_bytes(p.type, p.k);
  const size_t used = kernels.act_offset_bytes(p.type, p.k);
  std::vector<std::unique_ptr<GuardedBytes>> act;
  std::vector<const void*> act_rows;
  const size_t n = which.size();
  GuardedBytes y(n * static_cast<size_t>(p.rows) * sizeof(float));
  auto* y_data = reinterpret_cast<float*>(y.data());
  std::fill(y_data, y_data + n * static_cast<size_t>(p.rows), NAN);
  std::vector<float*> y_rows;
  REQUIRE(act_bytes % 64 == 0);
  REQUIRE(act_bytes >= used);
  for (size_t c = 0; c < n; ++c) {
    act.push_back(std::make_unique<GuardedBytes>(used));
    kernels.quantize_act(p.type, p.x.data() + which[c] * p.k, act.back()->data(), p.k);
    act_rows.push_back(act.back()->data());
    y_rows.push_back(y_data + c * static_cast<size_t>(p.rows));
  }
  kernels.matmul(p.type, {.w = p.w.data(),
                          .row_stride_bytes = static_cast<int64_t>(row_bytes(p.type, p.k)),
                          .row_begin = begin,
                          .row_end = end,
                          .k = p.k,
                          .act_rows = act_rows.data(),
                          .n_cols = static_cast<int>(n),
                          .y_rows = y_rows.data()});
  return {y_data, y_data + n * static_cast<size_t>(p.rows)};
}

std::vector<int> first_columns(int n) {
  std::vector<int> columns(static_cast<size_t>(n));
  for (int c = 0; c < n; ++c) columns[static_cast<size_t>(c)] = c;
  return columns;
}

/// Calls fn(kernels) for every instruction set; says which are absent.
template <typename Fn> void for_each_isa(Fn&& fn) {
  for (const char* isa : {"avx512", "avx_vnni", "avx2"}) {
    const MatmulKernels* kernels = cpu::matmul_kernels(isa);
    if (kernels == nullptr) {
      MESSAGE("skipped: this machine cannot run " << isa);
      continue;
    }
    CAPTURE(isa);
    fn(*kernels);
  }
}

void check_problem(const MatmulKernels& kernels, Problem& p) {
  const std::vector<float> y = run(kernels, p, 0, p.rows, first_columns(p.columns));
  // Products of quantized types are exact per block; what is left are f32 roundings of k / 32 (or k / 16) terms.
  const double tolerance = 1e-6;
  for (size_t i = 0; i < y.size(); ++i) {
    if (!(std::fabs(y[i] - p.expected[i]) <= tolerance * p.scale[i])) {
      FAIL_CHECK("column " << i / static_cast<size_t>(p.rows) << " row " << i % static_cast<size_t>(p.rows)
                           << ": expected " << p.expected[i] << ", got " << y[i] << ", norm " << p.scale[i]);
      return;
    }
  }
}

}  // namespace

TEST_CASE("every type is supported by every instruction set") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) CHECK_MESSAGE(kernels.supports(type), std::string(dtype_name(type)));
    CHECK(!kernels.supports(DType::kI32));
    CHECK(!kernels.supports(DType::kF8_E4M3));
  });
}

TEST_CASE("products agree with float64 on decoded weights and rounded activations, for odd and real sizes") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      const int block = dtype_info(type).block_elements;
      std::vector<int64_t> ks = {block == 1 ? 32 : block, 3 * std::max(block, 32), 2048};
      if (block <= 32) ks.insert(ks.end(), {96, 1056, 1408});
      if (block == 1) ks.insert(ks.end(), {1, 7, 23, 161});
      unsigned seed = 1;
      for (const int64_t k : ks) {
        for (const int64_t rows : {1, 3, 17, 48}) {
          for (const int columns : {1, 2, 3, 5, 17}) {
            ++seed;
            CAPTURE(std::string(dtype_name(type)));
            CAPTURE(k);
            CAPTURE(rows);
            CAPTURE(columns);
            CAPTURE(seed);
            Problem p(type, rows, k, columns, seed);
            p.solve();
            check_problem(kernels, p);
          }
        }
      }
    }
  });
}

TEST_CASE("every column count from 1 to 17, and 33, agrees with float64") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      for (int columns = 1; columns <= 33; columns += columns < 17 ? 1 : 16) {
        CAPTURE(std::string(dtype_name(type)));
        CAPTURE(columns);
        Problem p(type, 35, 768, columns, 77);
        p.solve();
        check_problem(kernels, p);
      }
    }
  });
}

TEST_CASE("a column's result is the same bits alone, in any batch, at any place in it, and for any range of rows") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      CAPTURE(std::string(dtype_name(type)));
      Problem p(type, 53, 1280, 40, 5);
      const std::vector<float> all = run(kernels, p, 0, p.rows, first_columns(40));
      std::mt19937 rng(3);
      for (int n = 1; n <= 40; n += n < 18 ? 1 : 11) {
        std::vector<int> which(static_cast<size_t>(n));
        for (int& c : which) c = static_cast<int>(rng() % 40);
        const int64_t begin = static_cast<int64_t>(rng() % 20), end = p.rows - static_cast<int64_t>(rng() % 20);
        const std::vector<float> some = run(kernels, p, begin, end, which);
        int differing = 0, strayed = 0;
        for (size_t c = 0; c < which.size(); ++c) {
          for (int64_t r = 0; r < p.rows; ++r) {
            const float got = some[c * static_cast<size_t>(p.rows) + static_cast<size_t>(r)];
            const float want = all[static_cast<size_t>(which[c] * p.rows + r)];
            if (r < begin || r >= end) {
              strayed += !std::isnan(got);
            } else {
              differing += std::bit_cast<uint32_t>(got) != std::bit_cast<uint32_t>(want);
            }
          }
        }
        CAPTURE(n);
        CAPTURE(begin);
        CAPTURE(end);
        CHECK(differing == 0);
        CHECK(strayed == 0);
      }
    }
  });
}

TEST_CASE("rows longer than the kernels take at a time agree with float64, alone and in a batch, bit for bit") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      CAPTURE(std::string(dtype_name(type)));
      Problem p(type, 18, 2 * 8192 + 1280, 3, 21);
      p.solve();
      check_problem(kernels, p);
      const std::vector<float> all = run(kernels, p, 0, p.rows, first_columns(3));
      for (int c = 0; c < 3; ++c) {
        const std::vector<float> alone = run(kernels, p, 0, p.rows, {c});
        CHECK(std::memcmp(alone.data(), all.data() + c * p.rows, alone.size() * sizeof(float)) == 0);
      }
    }
  });
}

TEST_CASE("quantized products are the same bits on every instruction set") {
  const std::vector<std::string> isas = cpu::matmul_isa_names();
  if (isas.size() < 2) {
    MESSAGE("skipped: this machine has but one");
    return;
  }
  for (const DType type : kTypes) {
    if (!dtype_info(type).is_quantized) continue;
    CAPTURE(std::string(dtype_name(type)));
    Problem p(type, 19, 1024, 7, 11);
    const std::vector<float> best = run(*cpu::matmul_kernels(isas.front()), p, 0, p.rows, first_columns(7));
    for (const std::string& isa : isas) {
      CAPTURE(isa);
      for (const int columns : {7, 1}) {  // in panels, and row by row
        const std::vector<float> y = run(*cpu::matmul_kernels(isa), p, 0, p.rows, first_columns(columns));
        CHECK(std::memcmp(best.data(), y.data(), y.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("activations quantized in slices equal those quantized at once; a row of zeros gives zero") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      CAPTURE(std::string(dtype_name(type)));
      const int64_t k = 256;
      std::vector<float> x(static_cast<size_t>(k));
      std::mt19937 rng(9);
      for (float& v : x) v = std::normal_distribution<float>{}(rng);
      std::fill(x.begin() + 64, x.begin() + 96, 0.0f);
      const size_t bytes = kernels.act_offset_bytes(type, k);
      std::vector<std::byte> whole(bytes), sliced(bytes);
      kernels.quantize_act(type, x.data(), whole.data(), k);
      for (int64_t at = 0; at < k; at += 64) {
        kernels.quantize_act(type, x.data() + at, sliced.data() + kernels.act_offset_bytes(type, at), 64);
      }
      CHECK(whole == sliced);

      Problem p(type, 5, k, 1, 4);
      std::fill(p.x.begin(), p.x.end(), 0.0f);
      for (const float y : run(kernels, p, 0, 5, {0})) CHECK(y == 0.0f);
    }
  });
}

TEST_CASE("weights at the largest magnitudes of every format do not overflow the integer sums") {
  for_each_isa([](const MatmulKernels& kernels) {
    for (const DType type : kTypes) {
      if (!dtype_info(type).is_quantized) continue;
      for (const int byte : {0x00, 0xff, 0x80, 0x7f, 0x88, 0x77}) {
        for (const float sign : {1.0f, -1.0f}) {
          CAPTURE(std::string(dtype_name(type)));
          CAPTURE(byte);
          CAPTURE(sign);
          Problem p(type, 3, 512, 2, 1);
          const DTypeInfo& info = dtype_info(type);
          const size_t n = 3 * row_bytes(type, p.k);
          std::vector<std::byte> fresh(p.w.data(), p.w.data() + n);
          std::memset(p.w.data(), byte, n);
          const uint16_t one = f32_to_f16(1.0f);
          for (size_t at = 0; at < n; at += static_cast<size_t>(info.block_bytes)) {
            for (const size_t offset : half_offsets(type)) std::memcpy(p.w.data() + at + offset, &one, 2);
            if (type == DType::kMXFP4) p.w.data()[at] = std::byte{127};
            if (type == DType::kIQ1_M) p.w.data()[at + 55] = (p.w.data()[at + 55] & std::byte{0x0f}) | std::byte{0x20};
          }
          std::fill(p.x.begin(), p.x.end(), sign);
          p.solve();
          check_problem(kernels, p);
        }
      }
    }
  });
}
