#include "cuda/launchers.cuh"

namespace fathom::cuda {

const FormatLaunchers* float_launchers(DType dtype) {
  switch (dtype) {
    case DType::kF32: return launchers_of<F32>();
    case DType::kF16: return launchers_of<F16>();
    case DType::kBF16: return launchers_of<BF16>();
    case DType::kF8_E4M3: return launchers_of<F8_E4M3>();
    default: return nullptr;
  }
}

}  // namespace fathom::cuda
