// Device memory in units that are mapped one by one into a range of addresses: the driver's virtual memory. Its
// functions are looked up when they are needed, so that the program starts on machines without a driver.
#include <cuda.h>
#include <cuda_runtime.h>

#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/plain_text.h"
#include "cuda/backend_parts.h"

namespace fathom::cuda {
namespace {

/// A function of the driver as it was in CUDA 11.2, when this part of it had its present form.
template <typename Fn> Fn* driver_function(const char* name) {
  void* fn = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &fn, 11020, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &fn, cudaEnableDefault, &found);
#endif
  check_runtime(error, "asking the driver for its functions");
  if (found != cudaDriverEntryPointSuccess || fn == nullptr) {
    throw Error(ErrorCode::kDevice, std::string("cuda: the driver has no ") + name +
                                        "; expected one for CUDA 11.2 or newer; try --backend cpu or a newer driver");
  }
  return reinterpret_cast<Fn*>(fn);
}

struct Driver {
  decltype(&cuGetErrorName) error_name = driver_function<decltype(cuGetErrorName)>("cuGetErrorName");
  decltype(&cuMemGetAllocationGranularity) granularity =
      driver_function<decltype(cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(&cuMemAddressReserve) reserve = driver_function<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) free = driver_function<decltype(cuMemAddressFree)>("cuMemAddressFree");
  decltype(&cuMemCreate) create = driver_function<decltype(cuMemCreate)>("cuMemCreate");
  decltype(&cuMemRelease) release = driver_function<decltype(cuMemRelease)>("cuMemRelease");
  decltype(&cuMemMap) map = driver_function<decltype(cuMemMap)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = driver_function<decltype(cuMemUnmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = driver_function<decltype(cuMemSetAccess)>("cuMemSetAccess");

  void check(CUresult result, const char* doing) const {
    if (result == CUDA_SUCCESS) return;
    const char* name = nullptr;
    error_name(result, &name);
    throw Error(ErrorCode::kDevice, std::string("cuda: ") + doing + " failed: " + (name != nullptr ? name : "unknown") +
                                        "; try fathom doctor");
  }
};

class MappedUnits final : public SparseRange {
 public:
  MappedUnits(int device, size_t n, size_t unit_bytes, std::string_view what, Stream stream,
              std::shared_ptr<uint64_t> counter)
      : what_(what), stream_(stream), device_(device), counter_(std::move(counter)), mapped_(n, 0) {
    int can_map = 0;
    check_runtime(
        cudaDeviceGetAttribute(
            &can_map, static_cast<cudaDeviceAttr>(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED), device),
        "asking what the device can do");
    if (can_map == 0) {
      throw Error(ErrorCode::kDevice, "cuda: the device cannot map memory, which " + what_ +
                                          " need; expected one of its own, not a part of one; try --backend cpu");
    }
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    size_t granularity = 0;
    driver_.check(driver_.granularity(&granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                  "asking how memory is mapped");
    stride_bytes_ = (unit_bytes + granularity - 1) / granularity * granularity;
    if (n == 0) return;
    driver_.check(driver_.reserve(&base_, n * stride_bytes_, granularity, 0, 0), "reserving addresses");
    data_ = reinterpret_cast<std::byte*>(base_);
  }
  ~MappedUnits() override {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
    for (size_t i = 0; i < mapped_.size(); ++i) {
      if (mapped_[i] == 0) continue;
      driver_.unmap(address(i), stride_bytes_);
      driver_.release(mapped_[i]);
      *counter_ -= stride_bytes_;
    }
    for (const CUmemGenericAllocationHandle spare : spare_) driver_.release(spare);
    *counter_ -= spare_.size() * stride_bytes_;
    if (base_ != 0) driver_.free(base_, mapped_.size() * stride_bytes_);
  }

  void prepare(size_t n) override {
    check_runtime(cudaSetDevice(device_), "choosing the device");
    while (spare_.size() < n) {
      CUmemGenericAllocationHandle handle = 0;
      const CUresult result = driver_.create(&handle, stride_bytes_, &properties_, 0);
      if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        size_t free_bytes = 0, total_bytes = 0;
        cudaMemGetInfo(&free_bytes, &total_bytes);
        throw Error(ErrorCode::kNoMemory, "device: no room for " + what_ + "; expected " +
                                              mib((n - spare_.size()) * stride_bytes_) + " free, got " +
                                              mib(free_bytes) + " of " + mib(total_bytes) +
                                              "; try fewer requests at a time, a smaller --ctx or --batch");
      }
      driver_.check(result, "taking device memory");
      spare_.push_back(handle);
      *counter_ += stride_bytes_;
    }
  }
  void take(size_t i) override {
    prepare(1);
    driver_.check(driver_.map(address(i), stride_bytes_, 0, spare_.back(), 0), "mapping device memory");
    mapped_[i] = spare_.back();
    spare_.pop_back();
    CUmemAccessDesc access{};
    access.location = properties_.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    driver_.check(driver_.set_access(address(i), stride_bytes_, &access, 1), "mapping device memory");
  }
  /// The memory stays for the next unit.
  void discard(size_t i) override {
    check_runtime(cudaSetDevice(device_), "choosing the device");
    check_runtime(cudaStreamSynchronize(stream_), "computing a step");
    driver_.check(driver_.unmap(address(i), stride_bytes_), "unmapping device memory");
    spare_.push_back(std::exchange(mapped_[i], 0));
  }

 private:
  CUdeviceptr address(size_t i) const { return base_ + i * stride_bytes_; }

  const Driver driver_;
  const std::string what_;
  const Stream stream_;
  const int device_;
  const std::shared_ptr<uint64_t> counter_;
  CUmemAllocationProp properties_{};
  CUdeviceptr base_ = 0;
  std::vector<CUmemGenericAllocationHandle> mapped_;  ///< of each unit; 0: none
  std::vector<CUmemGenericAllocationHandle> spare_;
};

}  // namespace

std::unique_ptr<SparseRange> make_units(int device, size_t n, size_t unit_bytes, std::string_view what, Stream stream,
                                        std::shared_ptr<uint64_t> counter) {
  return std::make_unique<MappedUnits>(device, n, unit_bytes, what, stream, std::move(counter));
}

}  // namespace fathom::cuda
