// Compiled with -fno-trapping-math: otherwise comparisons may not become vector instructions.
#include "sampling/softmax.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace fathom {
namespace {

constexpr size_t kLanes = 16;

}  // namespace

LogitScan scan_logits(std::span<const float> logits) {
  float max[kLanes];
  int32_t nan[kLanes] = {};
  for (float& m : max) m = -std::numeric_limits<float>::infinity();
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      const float x = logits[i + l];
      max[l] = x > max[l] ? x : max[l];
      nan[l] |= x != x ? 1 : 0;
    }
  }
  for (size_t i = whole; i < logits.size(); ++i) {
    max[0] = logits[i] > max[0] ? logits[i] : max[0];
    nan[0] |= logits[i] != logits[i] ? 1 : 0;
  }
  LogitScan scan{max[0], nan[0] != 0};
  for (size_t l = 1; l < kLanes; ++l) {
    scan.max = std::max(scan.max, max[l]);
    scan.has_nan = scan.has_nan || nan[l] != 0;
  }
  return scan;
}

double sum_exp(std::span<const float> x, float max, float temperature) {
  // Floats summed before going to double: 64 terms a lane, rounding below 4e-6 of the block.
  constexpr size_t kBlock = 1024;
  double total = 0;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    const size_t whole = begin + (end - begin) / kLanes * kLanes;
    float sum[kLanes] = {};
    for (size_t i = begin; i < whole; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) sum[l] += exp_nonpositive((x[i + l] - max) / temperature);
    }
    for (size_t i = whole; i < end; ++i) sum[0] += exp_nonpositive((x[i] - max) / temperature);
    for (const float s : sum) total += static_cast<double>(s);
  }
  return total;
}

void select_at_least(std::span<const float> x, float lowest, std::vector<int32_t>& indices) {
  for (size_t begin = 0; begin < x.size(); begin += kLanes) {
    const size_t end = std::min(begin + kLanes, x.size());
    if (end - begin == kLanes) {
      int32_t any = 0;
      for (size_t l = 0; l < kLanes; ++l) any |= x[begin + l] >= lowest ? 1 : 0;
      if (any == 0) continue;
    }
    for (size_t i = begin; i < end; ++i) {
      if (x[i] >= lowest) indices.push_back(static_cast<int32_t>(i));
    }
  }
}

}  // namespace fathom
