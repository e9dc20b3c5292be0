#include "cuda/launchers.cuh"

namespace fathom::cuda {

const FormatLaunchers* k_launchers(DType dtype) {
  switch (dtype) {
    case DType::kQ2_K: return launchers_of<Q2_K>();
    case DType::kQ3_K: return launchers_of<Q3_K>();
    case DType::kQ4_K: return launchers_of<Q4_K>();
    case DType::kQ5_K: return launchers_of<Q5_K>();
    case DType::kQ6_K: return launchers_of<Q6_K>();
    default: return nullptr;
  }
}

}  // namespace fathom::cuda
