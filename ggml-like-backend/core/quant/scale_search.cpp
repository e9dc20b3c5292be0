#include "core/quant/scale_search.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <string>

#include "core/error.h"
#include "core/float_convert.h"

namespace fathom::quant {
namespace {

// Twice a midpoint between two of the levels is an integer, so the nearest level is a function of floor(2 t).
constexpr int kIQ4TableOffset = 256;
constexpr std::array<uint8_t, 512> kIQ4NearestCode = [] {
  std::array<uint8_t, 512> codes{};
  for (int twice = -256; twice < 256; ++twice) {
    int code = 0;
    while (code < 15 && twice >= kIQ4Values[code] + kIQ4Values[code + 1]) ++code;
    codes[static_cast<size_t>(twice + kIQ4TableOffset)] = static_cast<uint8_t>(code);
  }
  return codes;
}();
constexpr std::array<float, 512> kIQ4NearestLevel = [] {
  std::array<float, 512> levels{};
  for (size_t i = 0; i < levels.size(); ++i) levels[i] = kIQ4Values[kIQ4NearestCode[i]];
  return levels;
}();

}  // namespace

V8 IQ4Levels::nearest(V8 t) {
  V8 u = t * splat8(2) + splat8(kIQ4TableOffset);
  u = u < splat8(0) ? splat8(0) : u;
  u = u > splat8(511) ? splat8(511) : u;
  V8 v;
  for (int j = 0; j < 8; ++j) v[j] = kIQ4NearestLevel[static_cast<size_t>(static_cast<int>(u[j]))];
  return v;
}

int IQ4Levels::code(float level) {
  return kIQ4NearestCode[static_cast<size_t>(static_cast<int>(2 * level) + kIQ4TableOffset)];
}

BlockScale::BlockScale(const float* x, int n, float* scaled) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  // Far below the smallest half, 2^-24, even with the longest ladder of levels (2^12) on top.
  is_zero_ = largest < 0x1p-60f;
  if (is_zero_) {
    std::fill(scaled, scaled + n, 0.0f);
    return;
  }
  exponent_ = std::ilogb(largest);
  const float down = std::ldexp(1.0f, -exponent_);
  for (int i = 0; i < n; ++i) scaled[i] = x[i] * down;
  max_magnitude_ = largest * down;
}

HalfFactor BlockScale::to_half(float factor) const {
  if (factor == 0) return {};
  const float full = std::ldexp(factor, exponent_);
  uint16_t bits = f32_to_f16(full);
  if ((bits & 0x7fffu) >= 0x7c00u) {
    char got[32];
    std::snprintf(got, sizeof(got), "%g", static_cast<double>(full));
    throw Error(ErrorCode::kModel, "quantize: a block's values are too large; expected a scale up to 65504, got " +
                                       std::string(got) + "; try bf16 or f32 for this tensor");
  }
  if ((bits & 0x7fffu) == 0) bits |= 1;
  return {bits, std::ldexp(f16_to_f32(bits), -exponent_)};
}

float search_block_factor(const ScaleFit* fits, int runs, int low, int high, int step, int tries) {
  float extreme = 0;
  for (int b = 0; b < runs; ++b) extreme = std::abs(fits[b].scale()) > std::abs(extreme) ? fits[b].scale() : extreme;
  if (extreme == 0) return 0;
  float best_factor = 0, best_gain = 0;
  for (int i = 0; i < tries; ++i) {
    // From a quarter step beyond the end inwards, half a step at a time.
    const float inwards = static_cast<float>(step) * (0.5f * static_cast<float>(i) - 0.25f);
    for (const float end : {static_cast<float>(low) + inwards, static_cast<float>(high) - inwards}) {
      if (std::abs(end) < 0.5f * static_cast<float>(step) || (low >= 0 && end < 0.5f * static_cast<float>(high)))
        continue;
      float factor = extreme / end;
      for (int round = 0; round < 2; ++round) {
        float kx = 0, kk = 0;
        for (int b = 0; b < runs; ++b) {
          const auto k = static_cast<float>(nearest_step(fits[b].scale() / factor, low, high, step));
          kx += k * fits[b].xv;
          kk += k * k * fits[b].vv;
        }
        if (kk <= 0 || kx == 0) break;
        const float gain = kx * kx / kk;
        factor = kx / kk;
        if (gain > best_gain) {
          best_gain = gain;
          best_factor = factor;
        }
      }
    }
  }
  return best_factor;
}

}  // namespace fathom::quant
