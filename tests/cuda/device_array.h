// Device memory in tests: filled with NaN bytes at first, with guard bytes around it. On the emulator this is host
// memory, and under the address sanitizer the guards give way to its own.
#pragma once

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace fathom::test {

inline void cuda_ok(cudaError_t error) { REQUIRE_MESSAGE(error == cudaSuccess, cudaGetErrorString(error)); }

template <typename T> class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n) {
    cuda_ok(cudaMalloc(reinterpret_cast<void**>(&memory_), bytes() + 2 * kGuardBytes));
    cuda_ok(cudaMemset(memory_, 0xff, bytes() + 2 * kGuardBytes));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { upload(values); }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return reinterpret_cast<T*>(memory_ + kGuardBytes); }
  size_t size() const { return n_; }
  void upload(const std::vector<T>& values) {
    REQUIRE(values.size() == n_);
    if (n_ > 0) cuda_ok(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  /// The values, after everything launched so far; checks that nothing was written around them.
  std::vector<T> download() const {
    cuda_ok(cudaDeviceSynchronize());
    std::vector<uint8_t> all(bytes() + 2 * kGuardBytes);
    cuda_ok(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost));
    const auto whole = [](uint8_t b) { return b == 0xff; };
    CHECK_MESSAGE(std::all_of(all.begin(), all.begin() + kGuardBytes, whole), "bytes before an array were written");
    CHECK_MESSAGE(std::all_of(all.end() - kGuardBytes, all.end(), whole), "bytes behind an array were written");
    std::vector<T> values(n_);
    std::copy_n(all.data() + kGuardBytes, bytes(), reinterpret_cast<uint8_t*>(values.data()));
    return values;
  }
  Tensor tensor(DType dtype, Shape shape) const { return Tensor(dtype, shape, data()); }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr ptrdiff_t kGuardBytes = 0;
#else
  static constexpr ptrdiff_t kGuardBytes = 256;
#endif
  size_t bytes() const { return n_ * sizeof(T); }
  size_t n_;
  uint8_t* memory_ = nullptr;
};

}  // namespace fathom::test
