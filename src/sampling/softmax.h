// The passes over a whole vocabulary: maximum, NaN check, sum of exponentials. Written in lanes so that the compiler
// can use vector registers without being allowed to reorder floating point arithmetic: results are the same everywhere.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace fathom {

/// e^x for x <= 0 to 2e-7 relative, 0 below -87; never NaN for x in [-infinity, 0].
/// x = n ln2 + r with |r| <= ln2 / 2; e^r is its Taylor polynomial of degree 7 (next term: 0.347^8 / 8! = 5e-9).
inline float exp_nonpositive(float x) {
  constexpr float kLowest = -87.0f;           // e^-87 = 1.6e-38 is still a normal number
  constexpr float kRound = 0x1.8p23f;         // adding it leaves the nearest integer in the low bits
  constexpr float kLn2High = 0.693359375f;    // 355 / 512: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;  // ln2 - kLn2High
  const float clamped = x < kLowest ? kLowest : x;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float y = 1.0f / 5040.0f;
  y = y * r + 1.0f / 720.0f;
  y = y * r + 1.0f / 120.0f;
  y = y * r + 1.0f / 24.0f;
  y = y * r + 1.0f / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound);
  const float scale = std::bit_cast<float>((exponent + 127u) << 23);
  return x < kLowest ? 0.0f : y * scale;
}

struct LogitScan {
  float max;  ///< -infinity for an empty range; meaningless if has_nan
  bool has_nan;
};

inline LogitScan scan_logits(std::span<const float> logits) {
  constexpr size_t kLanes = 16;
  float max[kLanes];
  int32_t nan[kLanes] = {};
  for (float& m : max) m = -std::numeric_limits<float>::infinity();
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      const float x = logits[i + l];
      max[l] = x > max[l] ? x : max[l];
      nan[l] |= x != x ? 1 : 0;
    }
  }
  for (; i < logits.size(); ++i) {
    max[0] = logits[i] > max[0] ? logits[i] : max[0];
    nan[0] |= std::isnan(logits[i]) ? 1 : 0;
  }
  LogitScan scan{max[0], nan[0] != 0};
  for (size_t l = 1; l < kLanes; ++l) {
    scan.max = std::max(scan.max, max[l]);
    scan.has_nan = scan.has_nan || nan[l] != 0;
  }
  return scan;
}

/// Sum of exp((x - max) / temperature). max is at least every x and finite; temperature > 0.
inline double sum_exp(std::span<const float> x, float max, float temperature) {
  constexpr size_t kLanes = 16;
  constexpr size_t kBlock =
      1024;  // floats summed before going to double: 64 terms a lane, error below 1e-5 of the block
  double total = 0;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    float sum[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) sum[l] += exp_nonpositive((x[i + l] - max) / temperature);
    }
    for (; i < end; ++i) sum[0] += exp_nonpositive((x[i] - max) / temperature);
    for (const float s : sum) total += static_cast<double>(s);
  }
  return total;
}

/// log(sum of exp(x)) with its maximum already known; the log-probability of token i is x[i] minus this.
inline double log_sum_exp(std::span<const float> x, float max) {
  return static_cast<double>(max) + std::log(sum_exp(x, max, 1.0f));
}

}  // namespace fathom
