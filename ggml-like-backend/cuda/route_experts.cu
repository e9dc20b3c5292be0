// The choice of experts, a warp for each token: scores, best groups, then the best expert as often as experts are used.
#include <climits>

#include "cuda/element.cuh"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

/// Selection scores of what cannot be chosen; below every score and bias.
constexpr float kExcluded = -3.4e38F;

FATHOM_DEVICE float score_of(RouterScore kind, float z, float largest) {
  if (kind == RouterScore::kSoftmax) return expf(z - largest);  // not yet divided by the sum
  if (kind == RouterScore::kSigmoid) return 1.0F / (1.0F + expf(-z));
  return sqrtf(z > 20.0F ? z : log1pf(expf(z)));
}

struct RouterSizes {
  int n_experts, n_used, n_groups, n_groups_used;
  RouterScore score;
  bool ranks_by_two, normalizes;
  float scale;
};

/// Dynamic shared memory: scores [E], selection scores [E], scores of groups [groups].
FATHOM_KERNEL(32, 1)
route_experts_kernel(const float* logits, const float* bias, int* ids, float* weights, RouterSizes r) {
  FATHOM_DYNAMIC_SHARED(shared);
  float* scores = reinterpret_cast<float*>(shared);
  float* selection = scores + r.n_experts;
  float* group_scores = selection + r.n_experts;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* z = logits + t * r.n_experts;

  float divisor = 1.0F;
  float largest = -INFINITY;
  if (r.score == RouterScore::kSoftmax) {
    for (int e = lane; e < r.n_experts; e += 32) largest = fmaxf(largest, z[e]);
    largest = warp_max(largest);
    float sum = 0;
    for (int e = lane; e < r.n_experts; e += 32) sum += expf(z[e] - largest);
    divisor = warp_sum(sum);
  }
  for (int e = lane; e < r.n_experts; e += 32) {
    scores[e] = score_of(r.score, z[e], largest) / divisor;
    selection[e] = bias != nullptr ? scores[e] + bias[e] : scores[e];
  }
  __syncwarp();

  if (r.n_groups > 1) {
    const int size = r.n_experts / r.n_groups;
    for (int g = lane; g < r.n_groups; g += 32) {
      float best = kExcluded, second = kExcluded;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        const float s = selection[e];
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

  float sum = 0;
  float* out = weights + t * r.n_used;
  for (int k = 0; k < r.n_used; ++k) {
    float best = kExcluded;
    int best_e = INT_MAX;
    for (int e = lane; e < r.n_experts; e += 32) {
      if (selection[e] > best) best = selection[e], best_e = e;  // the first of equals
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(0xffffffffU, best, offset);
      const int other_e = __shfl_xor_sync(0xffffffffU, best_e, offset);
      if (other > best || (other == best && other_e < best_e)) best = other, best_e = other_e;
    }
    // Scores that are not numbers choose nobody; the request fails at its logits, the kernels after this one need an
    // expert.
    const int chosen = min(best_e, r.n_experts - 1);
    const float weight = scores[chosen];
    sum += weight;
    if (lane == 0) {
      ids[t * r.n_used + k] = chosen;
      out[k] = weight;
      selection[chosen] = kExcluded;
    }
    __syncwarp();
  }
  const float factor = r.scale / (r.normalizes ? sum + 1e-20F : 1.0F);
  for (int k = lane; k < r.n_used; k += 32) out[k] *= factor;
}

}  // namespace

void route_experts(const RouteExpertsArgs& a, const OpContext& c) {
  const RouterParams& p = a.params;
  const RouterSizes r{static_cast<int>(a.logits.dim(1)),        p.n_used,    p.n_groups, p.n_groups_used, p.score,
                      p.group_rank == GroupRank::kSumOfTwoBest, p.normalize, p.scale};
  const size_t shared = sizeof(float) * static_cast<size_t>(2 * r.n_experts + r.n_groups);
  launch_overlapped(route_experts_kernel, static_cast<unsigned>(a.logits.dim(0)), 32, shared, c.stream,
                    a.logits.as<const float>(), a.bias ? a.bias.as<const float>() : nullptr, a.ids.as<int>(),
                    a.weights.as<float>(), r);
}

}  // namespace fathom::cuda
