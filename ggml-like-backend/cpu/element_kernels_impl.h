// The bodies of element_kernels.h as plain loops that the compiler turns into the vectors of each file including this.
// Everything here has internal linkage: code compiled for one instruction set must not be picked up by another file.
#pragma once

#include <cstdint>

namespace {

/// e^x for x in [-87, 88], clamped outside: 2^n * e^r with |r| <= ln(2)/2 and a Taylor polynomial of degree 6 for e^r,
/// whose remainder r^7/5040 stays below 1.2e-7 of the result.
inline float exp_of(float x) {
  x = x < -87.0F ? -87.0F : x > 88.0F ? 88.0F : x;
  constexpr float kRound =
      12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;  // ln(2) in two parts: the first product is exact
  const float p =
      1.0F +
      r * (1.0F + r * (0.5F + r * (1.66666672e-1F + r * (4.16666679e-2F + r * (8.33333377e-3F + r * 1.38888892e-3F)))));
  const int32_t bits =
      __builtin_bit_cast(int32_t, p) + static_cast<int32_t>(__builtin_bit_cast(uint32_t, shifted) << 23);
  return __builtin_bit_cast(float, bits);
}

double sum_squares(const float* x, int64_t n) {
  constexpr int kLanes = 32;  // independent sums: the order of additions is fixed by the code, not by the vector width
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  }
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += x[i] * x[i];
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[lane]);
  return total;
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t n) {
  const float scale =
      static_cast<float>(1.0 / __builtin_sqrt(sum_squares(x, n) / static_cast<double>(n) + static_cast<double>(eps)));
  if (weight == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale;
    return;
  }
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void add(const float* a, const float* b, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void silu_times(float* gate, const float* up, float limit, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i] > limit ? limit : gate[i];
    const float below = up[i] > limit ? limit : up[i], u = below < -limit ? -limit : below;
    gate[i] = g / (1.0F + exp_of(-g)) * u;
  }
}

void add_scaled(const float* x, float weight, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] += weight * x[i];
}

void weigh_rows(const float* const* rows, const float* weights, int n_rows, float* out, int64_t n) {
  const float* first = rows[0];
  for (int64_t i = 0; i < n; ++i) out[i] = weights[0] * first[i];
  for (int r = 1; r < n_rows; ++r) add_scaled(rows[r], weights[r], out, n);
}

void pool_rows(const float* const* values, const float* const* gates, int n_rows, float* out, int64_t n) {
  constexpr int64_t kChannels = 128;  // at a time: three sums of them stay in registers or the nearest cache
  float largest[kChannels], total[kChannels], sum[kChannels];
  for (int64_t first = 0; first < n; first += kChannels) {
    const int64_t count = n - first < kChannels ? n - first : kChannels;
    for (int64_t i = 0; i < count; ++i) {
      largest[i] = gates[0][first + i];
      total[i] = sum[i] = 0;
    }
    for (int r = 1; r < n_rows; ++r) {
      const float* gate = gates[r] + first;
      for (int64_t i = 0; i < count; ++i) largest[i] = gate[i] > largest[i] ? gate[i] : largest[i];
    }
    for (int r = 0; r < n_rows; ++r) {
      const float* gate = gates[r] + first;
      const float* value = values[r] + first;
      for (int64_t i = 0; i < count; ++i) {
        const float weight = exp_of(gate[i] - largest[i]);
        total[i] += weight;
        sum[i] += weight * value[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) out[first + i] = sum[i] / total[i];
  }
}

}  // namespace
