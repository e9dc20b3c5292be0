// The choice of a token's experts by a warp: scores, best groups, then the best expert as often as experts are used.
#pragma once

#include <climits>

#include "cuda/element.cuh"
#include "cuda/matmul.h"

namespace fathom::cuda {

/// Selection scores of what cannot be chosen; below every score and bias.
constexpr float kExcluded = -3.4e38F;

FATHOM_DEVICE float score_of(RouterScore kind, float z, float largest) {
  if (kind == RouterScore::kSoftmax) return expf(z - largest);  // not yet divided by the sum
  if (kind == RouterScore::kSigmoid) return 1.0F / (1.0F + expf(-z));
  return sqrtf(z > 20.0F ? z : log1pf(expf(z)));
}

/// A whole number that rises with the float; zeros of both signs are equal.
FATHOM_DEVICE uint32_t rank_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

/// Floats of shared memory that route_token works in: scores and selection scores of experts, scores of groups, weights
/// of the chosen.
constexpr int route_floats(const RouterSizes& r) { return 2 * r.n_experts + r.n_groups + r.n_used; }

/// z: a token's logits [E], which other blocks of this launch may have written; ids, weights: its own [K]. `listed`
/// [K]: the experts are these; null: the best ones.
FATHOM_DEVICE void route_token(const float* z, const float* bias, const int* listed, int* ids, float* weights,
                               float* shared, const RouterSizes& r) {
  float* scores = shared;
  float* selection = scores + r.n_experts;
  float* group_scores = selection + r.n_experts;
  float* picked = group_scores + r.n_groups;
  const int lane = static_cast<int>(threadIdx.x % 32);

  float divisor = 1.0F;
  float largest = -INFINITY;
  if (r.score == RouterScore::kSoftmax) {
    for (int e = lane; e < r.n_experts; e += 32) largest = fmaxf(largest, __ldcg(z + e));
    largest = warp_max(largest);
    float sum = 0;
    for (int e = lane; e < r.n_experts; e += 32) sum += expf(__ldcg(z + e) - largest);
    divisor = warp_sum(sum);
  }
  for (int e = lane; e < r.n_experts; e += 32) {
    scores[e] = score_of(r.score, __ldcg(z + e), largest) / divisor;
    selection[e] = bias != nullptr ? scores[e] + bias[e] : scores[e];
  }
  __syncwarp();

  if (r.n_groups > 1) {
    const int size = r.n_experts / r.n_groups;
    for (int g = lane; g < r.n_groups; g += 32) {
      float best = kExcluded, second = kExcluded;
      for (int j = 0, at = g % size; j < size; ++j, at = at + 1 == size ? 0 : at + 1) {  // lanes in different banks
        const float s = selection[g * size + at];
        second = s > best ? best : fmaxf(second, s);
        best = fmaxf(best, s);
      }
      group_scores[g] = r.ranks_by_two && size > 1 ? best + second : best;
    }
    __syncwarp();
    for (int g = lane; g < r.n_groups; g += 32) {
      int n_better = 0;
      for (int other = 0; other < r.n_groups; ++other) {
        if (group_scores[other] > group_scores[g] || (group_scores[other] == group_scores[g] && other < g)) ++n_better;
      }
      if (n_better < r.n_groups_used) continue;
      for (int e = g * size; e < (g + 1) * size; ++e) selection[e] = kExcluded;
    }
    __syncwarp();
  }

  // Each lane keeps the best of its own experts, the first of equals; only the lane that loses it looks again.
  float best = kExcluded;
  int best_e = INT_MAX;
  auto find_best = [&] {
    best = kExcluded, best_e = INT_MAX;
    for (int e = lane; e < r.n_experts; e += 32) {
      if (selection[e] > best) best = selection[e], best_e = e;
    }
  };
  find_best();
  float sum = 0;
  for (int k = 0; k < r.n_used && listed != nullptr; ++k) {
    const float weight = scores[listed[k]];
    sum += weight;
    if (lane == 0) ids[k] = listed[k], picked[k] = weight;
  }
  for (int k = 0; k < r.n_used && listed == nullptr; ++k) {
    const uint32_t rank = rank_of(best), highest = __reduce_max_sync(0xffffffffU, rank);
    // Scores that are not numbers choose nobody; the request fails at its logits, the kernels after this one need an
    // expert.
    const int chosen = min(static_cast<int>(__reduce_min_sync(
                               0xffffffffU, rank == highest ? static_cast<uint32_t>(best_e) : uint32_t{INT_MAX})),
                           r.n_experts - 1);
    const float weight = scores[chosen];
    sum += weight;
    if (lane == chosen % 32) {  // its own
      ids[k] = chosen;
      picked[k] = weight;
      selection[chosen] = kExcluded;
      find_best();
    }
    __syncwarp();
  }
  __syncwarp();  // the weights are there
  const float factor = r.scale / (r.normalizes ? sum + 1e-20F : 1.0F);
  for (int k = lane; k < r.n_used; k += 32) weights[k] = picked[k] * factor;
}

/// The experts of each token by its id; by default none.
struct ListedExperts {
  const int* table = nullptr;  ///< [W, K]
  const int* token_ids = nullptr;

  explicit ListedExperts(const RouteExpertsArgs& a)
      : table(a.table ? a.table.as<const int>() : nullptr),
        token_ids(a.table ? a.token_ids.as<const int>() : nullptr) {}
  FATHOM_DEVICE const int* of(int64_t t, int n_used) const {
    return table == nullptr ? nullptr : table + static_cast<int64_t>(token_ids[t]) * n_used;
  }
};

inline RouterSizes router_sizes(const RouteExpertsArgs& a) {
  const RouterParams& p = a.params;
  return {static_cast<int>(a.logits.dim(1)),        p.n_used,    p.n_groups, p.n_groups_used, p.score,
          p.group_rank == GroupRank::kSumOfTwoBest, p.normalize, p.scale};
}

}  // namespace fathom::cuda
