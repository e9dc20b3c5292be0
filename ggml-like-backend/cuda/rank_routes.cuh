// The order of a step's few routes by expert.
#pragma once

#include "cuda/device.h"
#include "cuda/prepare.h"

namespace fathom::cuda {

/// A step's n <= kFewRoutes routes, by a block of at least as many threads: the place of a route in the order is the
/// number of routes before it, counted one by one.
FATHOM_DEVICE void rank_routes(const int32_t* ids, int n, const RouteGroups& groups) {
  FATHOM_SHARED(int, id_of, kFewRoutes);
  FATHOM_SHARED(int, leads, kFewRoutes);
  const int r = static_cast<int>(threadIdx.x);
  const int id = r < n ? ids[r] : 0;
  if (r < n) id_of[r] = id;
  __syncthreads();
  int rank = 0, first = 1;
  for (int j = 0; j < n && r < n; ++j) {
    rank += id_of[j] < id || (id_of[j] == id && j < r);
    if (id_of[j] == id && j < r) first = 0;
  }
  const bool is_first = r < n && first != 0;
  if (r < n) leads[r] = is_first;
  const int n_groups = __syncthreads_count(is_first);
  int group = 0;
  for (int j = 0; j < n && r < n; ++j) group += leads[j] != 0 && id_of[j] < id;
  if (r < n) groups.order[rank] = r;
  if (is_first) {
    groups.expert[group] = id;
    groups.first[group] = rank;
  }
  if (r == 0) {
    *groups.n_groups = n_groups;
    groups.first[n_groups] = n;
  }
}

}  // namespace fathom::cuda
