// One device, the emulator, for programs that link it in place of the device's backend.
#include "core/error.h"
#include "cuda/backend_parts.h"
#include "cuda/cuda_backend.h"

namespace fathom {

std::string cuda_architectures() { return "emulator"; }
CudaDevices find_cuda_devices(bool) {
  return {{CudaDevice{0, "emulator", 90, 1, uint64_t{1} << 30, uint64_t{1} << 30}}, ""};
}
std::unique_ptr<Backend> make_cuda_backend(int device) { return cuda::make_backend(device, "cuda emulator"); }
std::unique_ptr<Backend> make_cuda_estimate(int) {
  return cuda::make_counting_backend("cuda emulator", uint64_t{1} << 30);
}
CudaFigures measure_cuda_device(int) { throw Error(ErrorCode::kDevice, "cuda: the emulator's speed says nothing"); }

}  // namespace fathom
