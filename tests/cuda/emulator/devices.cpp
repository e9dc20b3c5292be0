// One device, the emulator, for programs that link it in place of the device's backend.
#include <cuda_runtime.h>

#include "core/error.h"
#include "cuda/backend_parts.h"
#include "cuda/cuda_backend.h"

namespace fathom {

std::string cuda_architectures() { return "emulator"; }
CudaDevices find_cuda_devices(bool) {
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return {{CudaDevice{0, "emulator", 90, 1, total_bytes, free_bytes}}, ""};
}
std::unique_ptr<Backend> make_cuda_backend(int device) { return cuda::make_backend(device, "cuda emulator"); }
std::unique_ptr<Backend> make_cuda_estimate(int) {
  return cuda::make_counting_backend("cuda emulator", find_cuda_devices().devices[0].free_bytes);
}
CudaFigures measure_cuda_device(int) { throw Error(ErrorCode::kDevice, "cuda: the emulator's speed says nothing"); }

}  // namespace fathom
