// The kernels of hyper-connections where they do not run as a part of others.
#include "cuda/streams.cuh"

#include "cuda/ops.h"

namespace fathom::cuda {

CollapseByResult collapse_by_result(const CollapseStreamsArgs& a) {
  CollapseByResult task;
  task.streams = a.streams.as<const float>();
  task.products = a.products.as<const float>();
  task.base = a.base.as<const float>();
  task.scale = a.scale.as<const float>();
  task.out = a.out.as<float>();
  task.mixing = a.mixing ? a.mixing.as<float>() : nullptr;
  task.n_streams = static_cast<int>(a.n_streams());
  task.width = static_cast<int>(a.out.dim(1));
  task.norm_eps = a.norm_eps;
  task.eps = a.eps;
  task.iterations = a.iterations;
  return task;
}

ExpandResult expand_result(const ExpandStreamsArgs& a) {
  return {a.streams.as<const float>(), a.mixing.as<const float>(), a.out.as<float>(), static_cast<int>(a.n_streams())};
}

namespace {

/// A block for each token.
FATHOM_KERNEL(kNormShares, 1) collapse_streams_kernel(CollapseByResult task) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  collapse_token(task, blockIdx.x);
}

constexpr int kExpandThreads = 256;

/// Block (chunk of D, token).
FATHOM_KERNEL(kExpandThreads, 1) expand_streams_kernel(ExpandResult task, const float* y, int width) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int d = static_cast<int>(blockIdx.x * kExpandThreads + threadIdx.x);
  const int64_t t = blockIdx.y;
  if (d < width) expand_value(task, t, d, width, y[t * width + d]);
}

}  // namespace

void collapse_streams(const CollapseStreamsArgs& a, const NormOfResult& norm, const OpContext& c) {
  CollapseByResult task = collapse_by_result(a);
  task.norm = norm;
  launch_overlapped(collapse_streams_kernel, static_cast<unsigned>(a.out.dim(0)), kNormShares, 0, c.stream, task);
}

void expand_streams(const ExpandStreamsArgs& a, const OpContext& c) {
  const int width = static_cast<int>(a.y.dim(1));
  const dim3 grid(static_cast<unsigned>((width + kExpandThreads - 1) / kExpandThreads),
                  static_cast<unsigned>(a.y.dim(0)));
  launch_overlapped(expand_streams_kernel, grid, kExpandThreads, 0, c.stream, expand_result(a), a.y.as<const float>(),
                    width);
}

}  // namespace fathom::cuda
