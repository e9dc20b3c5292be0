// What happens to a step's activations before and after the products. Plain host header.
#pragma once

#include "core/node.h"
#include "cuda/matmul_kernels.h"

namespace fathom::cuda {

/// Rows to round to int8: row r is row r % n_inner of group r / n_inner.
struct RowsToQuantize {
  const float* x = nullptr;
  int64_t outer_stride = 0, inner_stride = 0;  ///< floats
  int64_t n_rows = 0;
  int64_t n_inner = 1;
  QuantizedRows out;
};
void launch_quantize(const RowsToQuantize& rows, Stream stream);

/// Bytes of the groups of a step, a multiple of 256, and where its arrays lie.
size_t route_groups_bytes(int64_t n_routes, int64_t n_experts);
RouteGroups route_groups_at(std::byte* memory, int64_t n_routes, int64_t n_experts);

constexpr int kMaxExperts = 512;
constexpr int kFewRoutes = 256;  ///< up to here one thread ranks one route against all others
/// ids [T, K] I32. rows.n_rows may be 0: nothing to quantize. One launch where there are up to 256 routes.
void launch_prepare(const Tensor& ids, int n_experts, const RouteGroups& groups, const RowsToQuantize& rows,
                    Stream stream);

/// The choice of experts and the order of the routes in one launch; up to kGemvTokens tokens and kFewRoutes routes.
void launch_route_and_group(const RouteExpertsArgs& a, const RouteGroups& groups, Stream stream);

/// FfnLaunch::outputs to FfnLaunch::out, for steps whose products did not do it themselves.
void launch_sum_outputs(const FfnLaunch& l, int hidden_size);

}  // namespace fathom::cuda
