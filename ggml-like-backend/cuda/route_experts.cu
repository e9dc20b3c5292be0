// The choice of experts, a warp for each token; in steps of few tokens also the order of their routes by expert.
#include "cuda/ops.h"
#include "cuda/prepare.h"
#include "cuda/rank_routes.cuh"
#include "cuda/route.cuh"

namespace fathom::cuda {
namespace {

/// Dynamic shared memory: route_floats.
FATHOM_KERNEL(32, 1)
route_experts_kernel(const float* logits, const float* bias, ListedExperts listed, int* ids, float* weights,
                     RouterSizes r) {
  FATHOM_DYNAMIC_SHARED(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = blockIdx.x;
  route_token(logits + t * r.n_experts, bias, listed.of(t, r.n_used), ids + t * r.n_used, weights + t * r.n_used,
              reinterpret_cast<float*>(shared), r);
}

constexpr int kGroupingThreads = 32 * kGemvTokens;

/// One block, a warp for each token. Dynamic shared memory: route_floats for each of them.
FATHOM_KERNEL(kGroupingThreads, 1)
route_and_group_kernel(const float* logits, const float* bias, ListedExperts listed, int* ids, float* weights,
                       RouterSizes r, int n_tokens, RouteGroups groups) {
  FATHOM_DYNAMIC_SHARED(shared);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t t = threadIdx.x / 32;
  if (t < n_tokens) {
    route_token(logits + t * r.n_experts, bias, listed.of(t, r.n_used), ids + t * r.n_used, weights + t * r.n_used,
                reinterpret_cast<float*>(shared) + t * route_floats(r), r);
  }
  __syncthreads();
  rank_routes(ids, n_tokens * r.n_used, groups);
}

size_t shared_bytes(const RouterSizes& r, int64_t n_tokens) {
  return sizeof(float) * static_cast<size_t>(route_floats(r)) * static_cast<size_t>(n_tokens);
}

}  // namespace

void route_experts(const RouteExpertsArgs& a, const OpContext& c) {
  const RouterSizes r = router_sizes(a);
  launch_overlapped(route_experts_kernel, static_cast<unsigned>(a.logits.dim(0)), 32, shared_bytes(r, 1), c.stream,
                    a.logits.as<const float>(), a.bias ? a.bias.as<const float>() : nullptr, ListedExperts(a),
                    a.ids.as<int>(), a.weights.as<float>(), r);
}

RouteByResult route_by_result(const RouteExpertsArgs& a) {
  return {a.bias ? a.bias.as<const float>() : nullptr, a.ids.as<int>(), a.weights.as<float>(), router_sizes(a)};
}

void launch_route_and_group(const RouteExpertsArgs& a, const RouteGroups& groups, Stream stream) {
  const RouterSizes r = router_sizes(a);
  const auto n_tokens = static_cast<int>(a.logits.dim(0)), n_routes = n_tokens * r.n_used;
  FATHOM_CHECK(n_tokens <= kGemvTokens && n_routes <= kFewRoutes, "few routes");
  const auto threads = static_cast<unsigned>(std::max(32 * n_tokens, (n_routes + 31) / 32 * 32));
  launch_overlapped(route_and_group_kernel, 1, threads, shared_bytes(r, n_tokens), stream, a.logits.as<const float>(),
                    a.bias ? a.bias.as<const float>() : nullptr, ListedExperts(a), a.ids.as<int>(),
                    a.weights.as<float>(), r, n_tokens, groups);
}

}  // namespace fathom::cuda
