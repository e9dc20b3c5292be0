// The passes over a whole vocabulary: maximum, NaN check, sum of exponentials, search. Sums run in fixed lanes, so that
// vector registers can be used without reordering floating point arithmetic: results are the same on every machine.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

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
LogitScan scan_logits(std::span<const float> logits);

/// Sum of exp((x - max) / temperature). max is at least every x and finite; temperature > 0.
double sum_exp(std::span<const float> x, float max, float temperature);

/// Appends the indices of all x >= lowest, in order. Fast where they are few.
void select_at_least(std::span<const float> x, float lowest, std::vector<int32_t>& indices);

}  // namespace fathom
