// Expert choice: exact, in double where a sum could move a close call.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/reference/reference.h"

namespace fathom::cpu::reference {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();

void scores_of(RouterScore kind, const float* logits, int64_t n, float* scores) {
  if (kind == RouterScore::kSoftmax) {
    const float largest = *std::max_element(logits, logits + n);
    double sum = 0;
    for (int64_t e = 0; e < n; ++e) sum += std::exp(static_cast<double>(logits[e]) - static_cast<double>(largest));
    for (int64_t e = 0; e < n; ++e)
      scores[e] = static_cast<float>(std::exp(static_cast<double>(logits[e]) - static_cast<double>(largest)) / sum);
    return;
  }
  for (int64_t e = 0; e < n; ++e) {
    const double z = static_cast<double>(logits[e]);
    const double softplus = z > 20 ? z : std::log1p(std::exp(z));
    scores[e] = static_cast<float>(kind == RouterScore::kSigmoid ? 1.0 / (1.0 + std::exp(-z)) : std::sqrt(softplus));
  }
}

/// Sets the selection scores of experts outside the best groups to kExcluded.
void keep_best_groups(const RouterParams& p, float* selection, int64_t n_experts, int32_t* order, float* group_scores) {
  const int64_t size = n_experts / p.n_groups;
  for (int64_t group = 0; group < p.n_groups; ++group) {
    const float* s = selection + group * size;
    float best = kExcluded, second = kExcluded;
    for (int64_t i = 0; i < size; ++i) {
      if (s[i] > best) {
        second = best;
        best = s[i];
      } else if (s[i] > second) {
        second = s[i];
      }
    }
    group_scores[group] = p.group_rank == GroupRank::kBest || size == 1 ? best : best + second;
  }
  std::iota(order, order + p.n_groups, 0);
  std::stable_sort(order, order + p.n_groups, [&](int32_t a, int32_t b) { return group_scores[a] > group_scores[b]; });
  for (int i = p.n_groups_used; i < p.n_groups; ++i) std::fill_n(selection + order[i] * size, size, kExcluded);
}

}  // namespace

Workspace route_experts_workspace(const RouteExpertsArgs& a) {
  return {0, static_cast<size_t>(a.logits.dim(1)) * 4 * sizeof(float)};
}

void route_experts(const RouteExpertsArgs& a, OpContext& c) {
  const RouterParams& p = a.params;
  const int64_t n_experts = a.logits.dim(1);
  float* scores = reinterpret_cast<float*>(c.own);
  float* selection = scores + n_experts;
  float* group_scores = selection + n_experts;
  int32_t* order = reinterpret_cast<int32_t*>(group_scores + n_experts);
  // Without a table: the best ones.
  const auto choose = [&](int32_t* ids) {
    for (int k = 0; k < p.n_used; ++k) {
      const auto best = std::max_element(selection, selection + n_experts);  // the first of equals
      ids[k] = static_cast<int32_t>(best - selection);
      *best = kExcluded;
    }
  };
  c.worker.share(a.logits.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      scores_of(p.score, a.logits.row_as<float>(t), n_experts, scores);
      for (int64_t e = 0; e < n_experts; ++e) selection[e] = a.bias ? scores[e] + a.bias.as<float>()[e] : scores[e];
      if (p.n_groups > 1) keep_best_groups(p, selection, n_experts, order, group_scores);
      int32_t* ids = a.ids.row_as<int32_t>(t);
      float* weights = a.weights.row_as<float>(t);
      if (a.table) {
        std::copy_n(a.table.row_as<int32_t>(a.token_ids.as<int32_t>()[t]), p.n_used, ids);
      } else {
        choose(ids);
      }
      double sum = 0;
      for (int k = 0; k < p.n_used; ++k) sum += static_cast<double>(weights[k] = scores[ids[k]]);
      const double factor = static_cast<double>(p.scale) / (p.normalize ? sum + 1e-20 : 1.0);
      for (int k = 0; k < p.n_used; ++k) weights[k] = static_cast<float>(static_cast<double>(weights[k]) * factor);
    }
  });
}

}  // namespace fathom::cpu::reference
