// Which tokens go to which expert: the routes of a step, sorted by expert.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/node.h"

namespace fathom::cpu {

/// Routes (token t, choice k) are numbered r = t * K + k. Expert e has the routes order[first[e]] .. order[first[e + 1]
/// - 1], in rising order. Lives in workspace memory.
struct ExpertGroups {
  int32_t* first;   ///< [E + 1]
  int32_t* order;   ///< [T * K]
  int32_t* active;  ///< [n_active] experts that have a token, rising
  int32_t* n_active;

  static size_t bytes(int64_t n_experts, int64_t n_routes) {
    return static_cast<size_t>(2 * n_experts + 2 + n_routes) * sizeof(int32_t);
  }
  /// Lays the arrays out in memory; fill() writes them.
  static ExpertGroups at(std::byte* memory, int64_t n_experts, int64_t n_routes) {
    auto* p = reinterpret_cast<int32_t*>(memory);
    return {p, p + n_experts + 1, p + n_experts + 1 + n_routes, p + 2 * n_experts + 1 + n_routes};
  }

  void fill(const int32_t* expert_ids, int64_t n_routes, int64_t n_experts) const {
    for (int64_t e = 0; e <= n_experts; ++e) first[e] = 0;
    for (int64_t r = 0; r < n_routes; ++r) ++first[expert_ids[r] + 1];
    *n_active = 0;
    for (int64_t e = 0; e < n_experts; ++e) {
      if (first[e + 1] > 0) active[(*n_active)++] = static_cast<int32_t>(e);
      first[e + 1] += first[e];
    }
    for (int64_t r = 0; r < n_routes; ++r) order[first[expert_ids[r]]++] = static_cast<int32_t>(r);
    for (int64_t e = n_experts; e > 0; --e) first[e] = first[e - 1];  // the counting moved every start to its end
    first[0] = 0;
  }
};

}  // namespace fathom::cpu
