// Which devices the driver shows. The runtime is linked statically and opens the driver's library by itself, so that
// the program starts on machines without one.
#include <cuda_runtime.h>

#include "core/error.h"
#include "cuda/backend_parts.h"
#include "cuda/cuda_backend.h"
#include "cuda/driver/probe.h"

namespace fathom {

std::string cuda_architectures() { return FATHOM_CUDA_ARCHITECTURE_NAMES; }

CudaDevices find_cuda_devices(bool with_free_bytes) {
  CudaDevices found;
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error != cudaSuccess || n == 0) {
    cudaGetLastError();
    const bool no_driver = error == cudaErrorInsufficientDriver;
    const int version = CUDART_VERSION;
    found.why_none = no_driver ? "the NVIDIA driver is missing or older than CUDA " + std::to_string(version / 1000) +
                                     "." + std::to_string(version % 1000 / 10) + " needs"
                     : error == cudaSuccess || error == cudaErrorNoDevice
                         ? std::string("the NVIDIA driver shows no device")
                         : std::string("the NVIDIA driver refuses: ") + cudaGetErrorString(error);
    return found;
  }
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    CudaDevice device{i,
                      properties.name,
                      properties.major * 10 + properties.minor,
                      properties.multiProcessorCount,
                      properties.totalGlobalMem,
                      0};
    if (with_free_bytes && cudaSetDevice(i) == cudaSuccess) {
      size_t free_bytes = 0, total_bytes = 0;
      if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) device.free_bytes = free_bytes;
    }
    found.devices.push_back(std::move(device));
  }
  cudaGetLastError();
  if (found.devices.empty()) found.why_none = "the NVIDIA driver tells nothing of its devices";
  return found;
}

namespace {

CudaDevice device_by_index(int device, bool with_free_bytes) {
  const CudaDevices found = find_cuda_devices(with_free_bytes);
  for (const CudaDevice& d : found.devices) {
    if (d.index == device) return d;
  }
  throw Error(ErrorCode::kDevice, "cuda: no device " + std::to_string(device) +
                                      (found.why_none.empty() ? "" : ": " + found.why_none) + "; try fathom doctor");
}

std::string description_of(const CudaDevice& d) { return "cuda sm_" + std::to_string(d.capability) + ", " + d.name; }

}  // namespace

std::unique_ptr<Backend> make_cuda_estimate(int device) {
  const CudaDevice d = device_by_index(device, true);
  return cuda::make_counting_backend(description_of(d), d.free_bytes);
}

std::unique_ptr<Backend> make_cuda_backend(int device) {
  const CudaDevice d = device_by_index(device, false);
  cuda::check_runtime(cudaSetDevice(device), "opening the device");
  if (!cuda::kernels_run_here()) {
    throw Error(ErrorCode::kDevice,
                "cuda: the kernels are not for this device; expected sm_" + std::to_string(d.capability) + ", got " +
                    cuda_architectures() +
                    "; try building on this machine, or with -DFATHOM_CUDA_ARCHITECTURES=all-supported");
  }
  return cuda::make_backend(device, description_of(d));
}

}  // namespace fathom
