#include "core/quant/quantize.h"

#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/dequantize.h"
#include "core/quant/encode.h"
#include "support/safetensors.h"

namespace fathom {
namespace {

constexpr DType kBlockTypes[] = {DType::kQ4_0,    DType::kQ4_1,   DType::kQ5_0,    DType::kQ5_1,   DType::kQ8_0,
                                 DType::kQ2_K,    DType::kQ3_K,   DType::kQ4_K,    DType::kQ5_K,   DType::kQ6_K,
                                 DType::kIQ4_NL,  DType::kIQ4_XS, DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S,
                                 DType::kIQ3_XXS, DType::kIQ3_S,  DType::kIQ1_S,   DType::kIQ1_M,  DType::kMXFP4};

/// n Gaussian values of the given deviation, the same on every platform.
std::vector<float> gaussian(size_t n, double deviation, unsigned seed) {
  std::mt19937 rng(seed);
  auto uniform = [&] { return (static_cast<double>(rng()) + 0.5) / 4294967296.0; };
  std::vector<float> x(n);
  for (float& v : x) {
    v = static_cast<float>(deviation * std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()));
  }
  return x;
}

std::vector<float> round_trip(DType dtype, const std::vector<float>& x, const float* importance = nullptr) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<uint8_t> bytes(row_bytes(dtype, n));
  quantize_row(dtype, x.data(), bytes.data(), n, importance);
  std::vector<float> y(x.size());
  dequantize_row(dtype, bytes.data(), y.data(), n);
  return y;
}

double weighted_error(const std::vector<float>& x, const std::vector<float>& y, const float* w = nullptr) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    sum += e * e * (w != nullptr ? static_cast<double>(w[i]) : 1.0);
  }
  return sum;
}

double relative_rms(const std::vector<float>& x, const std::vector<float>& y) {
  return std::sqrt(weighted_error(x, y) / weighted_error(x, std::vector<float>(x.size())));
}

std::string upper(std::string_view name) {
  std::string s(name);
  for (char& c : s) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return s;
}

TEST_CASE("on Gaussian rows no encoder errs more than the reference encoders do") {
  std::ifstream file(std::string(FATHOM_FIXTURES) + "/quants/quant_errors.json");
  const nlohmann::json reference = nlohmann::json::parse(file);
  const std::vector<float> x = gaussian(65536, 0.7, 11);
  for (const DType dtype : kBlockTypes) {
    const std::string name = upper(dtype_name(dtype));
    std::vector<float> y;
    for (size_t row = 0; row < x.size(); row += 256) {
      const auto part =
          round_trip(dtype, {x.begin() + static_cast<long>(row), x.begin() + static_cast<long>(row) + 256});
      y.insert(y.end(), part.begin(), part.end());
    }
    const double error = relative_rms(x, y);
    for (const auto& [encoder, figure] : reference.at(name).at("relative_rms_error").items()) {
      CAPTURE(name);
      CAPTURE(encoder);
      CHECK(error <= figure.get<double>());
    }
  }
}

// Without a search: the range, or the largest magnitude at the lower end, in even steps.
double error_of_plain_rounding(DType dtype, const float* x) {
  const bool is_affine = dtype == DType::kQ4_1 || dtype == DType::kQ5_1;
  const float top = dtype == DType::kQ4_0 || dtype == DType::kQ4_1 ? 15 : 31;
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float extreme = *high > -*low ? *high : *low;
  const auto half = [](float v) { return f16_to_f32(f32_to_f16(v)); };
  const float d = half(is_affine ? (*high - *low) / top : extreme / (-(top + 1) / 2));
  const float m = is_affine ? half(*low) : -d * (top + 1) / 2;
  double sum = 0;
  for (int i = 0; i < 32; ++i) {
    const float q = d != 0 ? std::clamp(std::round((x[i] - m) / d), 0.0f, top) : 0;
    sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(d * q + m), 2);
  }
  return sum;
}

TEST_CASE("no block of Q4_0 to Q5_1 errs more than plain rounding, whatever its values are like") {
  for (const DType dtype : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1}) {
    for (const double exponent : {1.0, 2.0, 4.0}) {  // of magnitudes: ever heavier tails
      for (const float offset : {0.0f, 0.05f}) {
        std::vector<float> x = gaussian(32 * 64, 0.3, 23);
        for (float& v : x) v = std::copysign(static_cast<float>(std::pow(std::abs(v), exponent)), v) + offset;
        const std::vector<float> y = round_trip(dtype, x);
        for (size_t at = 0; at < x.size(); at += 32) {
          CAPTURE(dtype_name(dtype));
          CAPTURE(exponent);
          CAPTURE(at);
          const std::vector<float> block(x.begin() + static_cast<long>(at), x.begin() + static_cast<long>(at) + 32);
          const std::vector<float> back(y.begin() + static_cast<long>(at), y.begin() + static_cast<long>(at) + 32);
          CHECK(weighted_error(block, back) <= 1.001 * error_of_plain_rounding(dtype, x.data() + at));
        }
      }
    }
  }
}

TEST_CASE("the result does not depend on how a row is cut") {
  const std::vector<float> x = gaussian(1024, 0.05, 3);
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    std::vector<uint8_t> whole(row_bytes(dtype, 1024)), parts(whole.size());
    quantize_row(dtype, x.data(), whole.data(), 1024, nullptr);
    for (int i = 0; i < 4; ++i)
      quantize_row(dtype, x.data() + 256 * i, parts.data() + i * row_bytes(dtype, 256), 256, nullptr);
    CHECK(whole == parts);
    if (dtype_info(dtype).block_elements > 32) continue;
    for (int i = 0; i < 32; ++i)
      quantize_row(dtype, x.data() + 32 * i, parts.data() + i * row_bytes(dtype, 32), 32, nullptr);
    CHECK(whole == parts);
  }
}

TEST_CASE("every instruction set of this machine writes the same bytes") {
  const quant::EncoderList& all = quant::usable_encoders();
  std::vector<float> x = gaussian(256 * 24, 0.02, 11), importance = gaussian(256 * 24, 1, 12);
  for (float& v : importance) v *= v;
  for (int i = 0; i < 256; ++i) x[256 + i] = 0, x[512 + i] *= 1e-6F, x[768 + i] = 0.5F;
  x[1031] = 40;
  for (const DType type : kBlockTypes) {
    for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      std::vector<uint8_t> first(row_bytes(type, static_cast<int64_t>(x.size()))), other(first.size());
      quantize_row_by(*all.sets[0], type, x.data(), first.data(), static_cast<int64_t>(x.size()), w);
      for (int i = 1; i < all.n; ++i) {
        CAPTURE(dtype_name(type));
        CAPTURE(all.sets[i]->isa);
        quantize_row_by(*all.sets[i], type, x.data(), other.data(), static_cast<int64_t>(x.size()), w);
        CHECK(first == other);
      }
    }
  }
}

TEST_CASE("zero rows decode to zeros") {
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    for (const float v : round_trip(dtype, std::vector<float>(512))) REQUIRE(v == 0.0f);
  }
}

TEST_CASE("a block of zeros beside others stays small") {
  std::vector<float> x = gaussian(256, 0.7, 5);
  std::fill(x.begin() + 64, x.begin() + 96, 0.0f);
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    const auto y = round_trip(dtype, x);
    for (size_t i = 64; i < 96; ++i) CHECK(std::abs(y[i]) < 0.15f);
  }
}

TEST_CASE("constant rows keep their constant") {
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    for (const float c : {0.75f, -0.75f, 96.0f}) {
      CAPTURE(c);
      for (const float v : round_trip(dtype, std::vector<float>(256, c)))
        REQUIRE(std::abs(v - c) <= 1.2e-3f * std::abs(c));
    }
  }
}

TEST_CASE("the relative error does not depend on the magnitude, as far as half-precision scales reach") {
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    const double usual = relative_rms(gaussian(2048, 1, 7), round_trip(dtype, gaussian(2048, 1, 7)));
    for (const double deviation : {1e-3, 1e3}) {
      CAPTURE(deviation);
      const auto x = gaussian(2048, deviation, 7);
      CHECK(relative_rms(x, round_trip(dtype, x)) < 1.1 * usual + 1e-3);
    }
    // Scales of subnormal halves are coarse, yet never worse than writing zeros.
    for (const double deviation : {1e-5, 1e-6, 1e-7, 1e-9, 1e-20, 1e-38}) {
      CAPTURE(deviation);
      const auto x = gaussian(2048, deviation, 7);
      const auto y = round_trip(dtype, x);
      for (const float v : y) REQUIRE(std::isfinite(v));
      double error = 0, power = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        error += std::pow(x[i] - static_cast<double>(y[i]), 2);
        power += std::pow(x[i], 2);
      }
      CHECK(error <= 1.0001 * power);
    }
  }
}

TEST_CASE("weights around a thousandth, as models have them, cost no type more than two percent of its accuracy") {
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    const auto large = gaussian(4096, 0.5, 9);
    std::vector<float> small(large);
    for (float& v : small) v *= 0x1p-8f;
    CHECK(relative_rms(small, round_trip(dtype, small)) < 1.02 * relative_rms(large, round_trip(dtype, large)) + 1e-4);
  }
}

TEST_CASE("one outlier in a row is kept near its size without drowning the rest") {
  auto x = gaussian(256, 0.02, 13);
  x[100] = 1.5f;
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    const auto y = round_trip(dtype, x);
    // The IQ2 and IQ1 grids have no zero, or few, beside a large value: whoever keeps the outlier pays around it.
    const bool coarse = dtype_info(dtype).block_bytes < 80 && dtype_info(dtype).block_elements == 256;
    CHECK(relative_rms(x, y) < (coarse || dtype == DType::kIQ2_S ? 0.7 : 0.35));
    CHECK(y[100] > 0.7f);
    CHECK(y[100] < 1.8f);
  }
}

TEST_CASE("values that lie on the grid of Q8_0, Q4_0, Q4_1 or MXFP4 survive") {
  std::mt19937 rng(21);
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    const float d = f16_to_f32(static_cast<uint16_t>(0x1000 + rng() % 0x5000));
    const float m = f16_to_f32(static_cast<uint16_t>(0x9000 + rng() % 0x2000));
    std::vector<float> q8(32), q4(32), q41(32), fp4(32);
    const float power = std::ldexp(1.0f, static_cast<int>(rng() % 200) - 100);
    constexpr float kFP4[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (size_t i = 0; i < 32; ++i) {
      q8[i] = d * static_cast<float>(static_cast<int>(rng() % 255) - 127);
      q4[i] = d * static_cast<float>(static_cast<int>(rng() % 16) - 8);
      q41[i] = d * static_cast<float>(rng() % 16) + m;
      fp4[i] = power * kFP4[rng() % 8] * (rng() % 2 != 0 ? 1.0f : -1.0f);
    }
    q8[rng() % 32] = 127 * d;
    q4[5] = -8 * d;
    q41[6] = m;
    q41[7] = 15 * d + m;
    CHECK(round_trip(DType::kQ8_0, q8) == q8);
    CHECK(round_trip(DType::kQ4_0, q4) == q4);
    CHECK(round_trip(DType::kMXFP4, fp4) == fp4);
    CHECK(relative_rms(q41, round_trip(DType::kQ4_1, q41)) < 1e-3);
  }
}

TEST_CASE("blocks that another program encoded decode to the same values after a second encoding") {
  const testing::SafetensorsFixture fixture(std::string(FATHOM_FIXTURES) + "/quants/quants.safetensors");
  for (const char* name : {"Q8_0", "Q4_0", "Q5_0", "MXFP4", "IQ4_NL"}) {
    CAPTURE(name);
    const auto all = fixture.f32(std::string(name) + ".f32");
    const std::vector<float> x(all.begin() + static_cast<long>(all.size() / 2), all.end());
    CHECK(round_trip(dtype_from_name(name).value(), x) == x);
  }
}

TEST_CASE("importance moves the error to where it matters least") {
  const auto x = gaussian(2048, 0.7, 17);
  std::vector<float> importance(x.size());
  std::mt19937 rng(18);
  for (float& v : importance) v = std::exp(3.0f * static_cast<float>(rng()) / 4294967296.0f);
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    const double plain = weighted_error(x, round_trip(dtype, x), importance.data());
    const double weighted = weighted_error(x, round_trip(dtype, x, importance.data()), importance.data());
    CHECK(weighted < (dtype == DType::kQ8_0 || dtype == DType::kMXFP4 ? 1.0 : 0.98) * plain);
  }
  // No activation seen at all says nothing about what matters.
  const std::vector<float> zeros(x.size());
  for (const DType dtype : kBlockTypes) CHECK(round_trip(dtype, x, zeros.data()) == round_trip(dtype, x));
}

TEST_CASE("F32, F16 and BF16 rows are converted, not approximated further") {
  const auto x = gaussian(77, 0.7, 19);
  CHECK(round_trip(DType::kF32, x) == x);
  const auto half = round_trip(DType::kF16, x);
  const auto bf = round_trip(DType::kBF16, x);
  for (size_t i = 0; i < x.size(); ++i) {
    CHECK(half[i] == f16_to_f32(f32_to_f16(x[i])));
    CHECK(bf[i] == bf16_to_f32(f32_to_bf16(x[i])));
  }
}

TEST_CASE("what no block can hold is refused as the file's fault, with the place") {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<uint8_t> bytes(4096);
  auto code_of = [&](DType dtype, const std::vector<float>& x, const float* importance) {
    try {
      quantize_row(dtype, x.data(), bytes.data(), static_cast<int64_t>(x.size()), importance);
    } catch (const Error& e) {
      return static_cast<int>(e.code());
    }
    return 0;
  };
  std::vector<float> x(256, 0.5f);
  for (const DType dtype : kBlockTypes) {
    CAPTURE(dtype_name(dtype));
    for (const float bad : {kInf, -kInf, kNan}) {
      x[200] = bad;
      CHECK(code_of(dtype, x, nullptr) == static_cast<int>(ErrorCode::kModel));
    }
    x[200] = 1e30f;
    CHECK(code_of(dtype, x, nullptr) == (dtype == DType::kMXFP4 ? 0 : static_cast<int>(ErrorCode::kModel)));
    x[200] = 0.5f;
    std::vector<float> importance(256, 1.0f);
    importance[3] = kNan;
    CHECK(code_of(dtype, x, importance.data()) == static_cast<int>(ErrorCode::kModel));
    importance[3] = -1;
    CHECK(code_of(dtype, x, importance.data()) == static_cast<int>(ErrorCode::kModel));
  }
  CHECK(code_of(DType::kF16, {65519.0f}, nullptr) == 0);
  CHECK(code_of(DType::kF16, {65520.0f}, nullptr) == static_cast<int>(ErrorCode::kModel));
  CHECK(code_of(DType::kBF16, {std::numeric_limits<float>::max()}, nullptr) == static_cast<int>(ErrorCode::kModel));
  CHECK(code_of(DType::kBF16, {3.38e38f}, nullptr) == 0);
  try {
    x[7] = kNan;
    quantize_row(DType::kQ4_K, x.data(), bytes.data(), 256, nullptr);
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("element 7") != std::string::npos);
    CHECK(std::string(e.what()).find("q4_k") != std::string::npos);
  }
}

TEST_CASE("types without an encoder and broken rows are bugs") {
  float x[32] = {};
  uint8_t bytes[256];
  CHECK(!can_quantize(DType::kI32));
  CHECK(!can_quantize(DType::kF8_E4M3));
  CHECK(can_quantize(DType::kIQ1_M));
  CHECK_THROWS_AS(quantize_row(DType::kI32, x, bytes, 32, nullptr), BugError);
  CHECK_THROWS_AS(quantize_row(DType::kQ4_K, x, bytes, 32, nullptr), BugError);
  CHECK_NOTHROW(quantize_row(DType::kQ4_K, x, bytes, 0, nullptr));
}

}  // namespace
}  // namespace fathom
