// In place of the CUDA backend where nvcc was not found: no devices.
#include "core/error.h"
#include "cuda/cuda_backend.h"

namespace fathom {
namespace {

constexpr const char* kNone = "this build has no CUDA kernels";

}  // namespace

std::string cuda_architectures() { return ""; }
CudaDevices find_cuda_devices(bool) { return {{}, kNone}; }
std::unique_ptr<Backend> make_cuda_backend(int) {
  throw Error(ErrorCode::kDevice, std::string("cuda: no device can be opened: ") + kNone);
}
std::unique_ptr<Backend> make_cuda_estimate(int device) { return make_cuda_backend(device); }
CudaFigures measure_cuda_device(int) {
  throw Error(ErrorCode::kDevice, std::string("cuda: no device can be measured: ") + kNone);
}

}  // namespace fathom
