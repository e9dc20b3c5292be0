// One operation on the device (or the emulator) and on the CPU's reference, from the same host tensors.
#pragma once

#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <cuda_runtime.h>

#include "core/error.h"
#include "core/quant/codebooks.h"
#include "cpu/cpu_backend.h"
#include "cuda/memory.h"
#include "cuda/ops.h"

namespace fathom::testing {

inline void check_cuda(cudaError_t e) {
  if (e != cudaSuccess) throw Error(ErrorCode::kDevice, std::string("test: ") + cudaGetErrorString(e));
}

/// Device memory of one test and the context of launches.
class OnDevice {
 public:
  OnDevice() {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    c.stream = stream;
    c.books = {table(kIQ2XXSGrid), table(kIQ2XSGrid), table(kIQ2SGrid),
               table(kIQ3XXSGrid), table(kIQ3SGrid),  table(kIQ1SGrid)};
    c.index_counts = reinterpret_cast<int32_t*>(bytes(cuda::kIndexCountBytes));
    check_cuda(cudaMemsetAsync(c.index_counts, 0, cuda::kIndexCountBytes, stream));
  }
  ~OnDevice() {
    cudaStreamSynchronize(c.stream);
    cudaStreamDestroy(c.stream);
  }

  std::byte* bytes(size_t n) {
    buffers_.push_back(cuda::allocate_device(n, "a test", counter_));
    return buffers_.back()->data();
  }
  // All in the order of the tests' own stream, which does not wait for the default one.

  /// The tensor's bytes on the device, whatever their strides.
  Tensor put(const Tensor& host) {
    Tensor t = host;
    const size_t n = extent(host);
    t.data = bytes(n);
    check_cuda(cudaMemcpyAsync(t.data, host.data, n, cudaMemcpyHostToDevice, c.stream));
    return t;
  }
  /// Of the same shape, full of NaN bytes.
  Tensor poisoned(const Tensor& host) {
    Tensor t = host;
    t.data = bytes(extent(host));
    check_cuda(cudaMemsetAsync(t.data, 0xff, extent(host), c.stream));
    return t;
  }
  void workspace(size_t n) {
    c.workspace = bytes(n);
    if (n > 0) check_cuda(cudaMemsetAsync(c.workspace, 0xff, n, c.stream));
  }
  template <typename T> std::vector<T> fetch(const Tensor& t) {
    std::vector<T> out(extent(t) / sizeof(T));
    check_cuda(cudaMemcpyAsync(out.data(), t.data, extent(t), cudaMemcpyDeviceToHost, c.stream));
    check_cuda(cudaStreamSynchronize(c.stream));
    return out;
  }

  /// Every input of the node put on the device, every output poisoned.
  template <typename Args> Args node(Args host) {
    host.inputs([&](Tensor& t) {
      if (t) t = put(t);
    });
    host.outputs([&](Tensor& t) { t = poisoned(t); });
    return host;
  }

  cuda::OpContext c{};

 private:
  static size_t extent(const Tensor& t) {
    return t.shape.rank <= 1 ? t.size_bytes() : static_cast<size_t>(t.strides_bytes[0]) * static_cast<size_t>(t.dim(0));
  }
  template <typename T, size_t kN> const T* table(const T (&values)[kN]) {
    std::byte* p = bytes(sizeof(values));
    check_cuda(cudaMemcpyAsync(p, values, sizeof(values), cudaMemcpyHostToDevice, c.stream));
    return reinterpret_cast<const T*>(p);
  }

  std::shared_ptr<uint64_t> counter_ = std::make_shared<uint64_t>(0);
  std::vector<std::shared_ptr<Buffer>> buffers_;
};

/// side_by_side() of these nodes' arguments.
template <typename... Args> void run_side_by_side(const OnDevice& device, const Args&... args) {
  const Node nodes[] = {Node{args}...};
  cuda::side_by_side(nodes, device.c);
}

/// Host tensors of random numbers, all from one seed.
class HostTensors {
 public:
  explicit HostTensors(uint32_t seed) : random_(seed) {}

  Tensor make(DType type, Shape shape) {
    const Tensor sizes(type, shape, nullptr);
    buffers_.push_back(allocate_heap(sizes.size_bytes() + 64, "a test"));
    return Tensor(type, shape, buffers_.back()->data());
  }
  Tensor floats(Shape shape, float deviation = 1) {
    const Tensor t = make(DType::kF32, shape);
    for (int64_t i = 0; i < shape.n_elements(); ++i) t.as<float>()[i] = deviation * normal_(random_);
    return t;
  }
  Tensor ints(Shape shape, const std::function<int32_t(int64_t)>& value) {
    const Tensor t = make(DType::kI32, shape);
    for (int64_t i = 0; i < shape.n_elements(); ++i) t.as<int32_t>()[i] = value(i);
    return t;
  }
  Tensor bytes(DType type, Shape shape) {
    const Tensor t = make(type, shape);
    for (size_t i = 0; i < t.size_bytes(); ++i) t.data[i] = static_cast<std::byte>(random_() >> 11);
    return t;
  }
  int32_t below(int32_t n) { return static_cast<int32_t>(random_() % static_cast<uint32_t>(n)); }

 private:
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
};

/// The node's outputs by the CPU's reference; they are allocated by the caller.
template <typename Args> void run_reference(const Args& args) {
  static const std::unique_ptr<Backend> reference = make_cpu_backend({2, "reference"});
  const Node node{args};
  reference->execute({&node, 1});
}

/// Largest difference over the largest expectation; infinite where a value is not finite.
inline double worst_difference(const std::vector<float>& got, const float* want) {
  double worst = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i])));
    size = std::max(size, std::fabs(static_cast<double>(want[i])));
  }
  return worst / std::max(size, 1e-30);
}

}  // namespace fathom::testing
