#include "core/quant/dequantize.h"

#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/codebooks.h"
#include "core/quant/fp8.h"
#include "support/safetensors.h"

namespace fathom {
namespace {

// The fixture's upper-case names are dtype names.
constexpr const char* kFixtureTypes[] = {"Q4_0",  "Q4_1",    "Q5_0",  "Q5_1",   "Q8_0",   "Q2_K",    "Q3_K",
                                         "Q4_K",  "Q5_K",    "Q6_K",  "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS",
                                         "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S",  "IQ1_M",  "MXFP4"};

TEST_CASE("every block format decodes to what the reference decodes, to the last bit but one") {
  const testing::SafetensorsFixture fixture(std::string(FATHOM_FIXTURES) + "/quants/quants.safetensors");
  for (const char* name : kFixtureTypes) {
    CAPTURE(name);
    const DType dtype = dtype_from_name(name).value();
    const auto raw = fixture.u8(std::string(name) + ".raw");
    const auto expected = fixture.f32(std::string(name) + ".f32");
    REQUIRE(fixture.shape(std::string(name) + ".raw")[1] == dtype_info(dtype).block_bytes);
    REQUIRE(fixture.shape(std::string(name) + ".f32")[1] == dtype_info(dtype).block_elements);
    // One byte further on, to show that no alignment is needed.
    std::vector<uint8_t> shifted(raw.size() + 1);
    std::copy(raw.begin(), raw.end(), shifted.begin() + 1);
    std::vector<float> got(expected.size());
    dequantize_row(dtype, shifted.data() + 1, got.data(), static_cast<int64_t>(got.size()));
    int n_wrong = 0, n_inexact = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i] == expected[i]) continue;
      ++n_inexact;
      if (std::nextafter(got[i], expected[i]) != expected[i] && n_wrong++ == 0) {
        MESSAGE(name << " element " << i << ": expected " << expected[i] << ", got " << got[i]);
      }
    }
    CHECK(n_wrong == 0);
    CHECK(n_inexact <= static_cast<int>(got.size() / 100));
  }
}

TEST_CASE("rows of floating types decode exactly") {
  const std::vector<float> values = {0.0f, -0.0f, 1.0f, -2.5f, 0x1p-14f, 65504.0f};
  std::vector<float> got(values.size());
  dequantize_row(DType::kF32, values.data(), got.data(), 6);
  CHECK(std::memcmp(values.data(), got.data(), 24) == 0);
  std::vector<uint16_t> halves;
  for (const float v : values) halves.push_back(f32_to_f16(v));
  dequantize_row(DType::kF16, halves.data(), got.data(), 6);
  CHECK(std::memcmp(values.data(), got.data(), 24) == 0);
  std::vector<uint16_t> bf;
  for (const float v : {0.0f, -0.0f, 1.0f, -2.5f, 0x1p-126f, 0x1p127f}) bf.push_back(f32_to_bf16(v));
  dequantize_row(DType::kBF16, bf.data(), got.data(), 6);
  CHECK(got == std::vector<float>{0.0f, -0.0f, 1.0f, -2.5f, 0x1p-126f, 0x1p127f});
  const std::vector<double> doubles = {0.1, -3.0};
  dequantize_row(DType::kF64, doubles.data(), got.data(), 2);
  CHECK(got[0] == 0.1f);
  const uint8_t fp8[4] = {0x38, 0xb8, 0x7e, 0x01};
  dequantize_row(DType::kF8_E4M3, fp8, got.data(), 4);
  CHECK(got[0] == 1.0f);
  CHECK(got[1] == -1.0f);
  CHECK(got[2] == 448.0f);
  CHECK(got[3] == 0x1p-9f);
}

TEST_CASE("a row that does not divide into blocks, and an integer row, are bugs") {
  uint8_t block[144] = {};
  float y[256];
  CHECK_THROWS_AS(dequantize_row(DType::kQ4_K, block, y, 255), BugError);
  CHECK_THROWS_AS(dequantize_row(DType::kI32, block, y, 4), BugError);
  CHECK_NOTHROW(dequantize_row(DType::kQ4_K, block, y, 0));
}

TEST_CASE("all e4m3 bytes survive a round trip, and rounding goes to the nearest even code") {
  for (int b = 0; b < 256; ++b) {
    const float v = f8_e4m3_to_f32(static_cast<uint8_t>(b));
    if ((b & 0x7f) == 0x7f) {
      CHECK(std::isnan(v));
      CHECK((f32_to_f8_e4m3(v) & 0x7f) == 0x7f);
      continue;
    }
    CHECK(f32_to_f8_e4m3(v) == b);
    if ((b & 0x7f) == 0x7e) continue;
    const float above = f8_e4m3_to_f32(static_cast<uint8_t>(b + 1));
    const float middle = 0.5f * (v + above);
    CHECK(f32_to_f8_e4m3(middle) == ((b & 1) != 0 ? b + 1 : b));
    CHECK(f32_to_f8_e4m3(std::nextafter(middle, v)) == b);
    CHECK(f32_to_f8_e4m3(std::nextafter(middle, above)) == b + 1);
  }
  CHECK(f32_to_f8_e4m3(1e9f) == 0x7e);
  CHECK(f32_to_f8_e4m3(-std::numeric_limits<float>::infinity()) == 0xfe);
  CHECK(f32_to_f8_e4m3(1e-9f) == 0);
}

TEST_CASE("E8M0 bytes are powers of two from 2^-127 on, the last one NaN") {
  for (int e = 0; e < 255; ++e) CHECK(e8m0_to_f32(static_cast<uint8_t>(e)) == std::ldexp(1.0f, e - 127));
  CHECK(std::isnan(e8m0_to_f32(255)));
}

TEST_CASE("sign tables: an even number of minus signs, bytes that match the bits") {
  for (unsigned i = 0; i < 128; ++i) {
    CHECK((kEvenSigns[i] & 127u) == i);
    CHECK(std::popcount(static_cast<unsigned>(kEvenSigns[i])) % 2 == 0);
  }
  for (unsigned i = 0; i < 256; ++i) {
    int8_t bytes[8];
    std::memcpy(bytes, &kSignBytes[i], 8);
    for (int j = 0; j < 8; ++j) CHECK(bytes[j] == ((i >> j) & 1u ? -1 : 1));
  }
}

}  // namespace
}  // namespace fathom
