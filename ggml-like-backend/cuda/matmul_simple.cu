#include "cuda/launchers.cuh"

namespace fathom::cuda {

const FormatLaunchers* simple_launchers(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0: return launchers_of<Q4_0>();
    case DType::kQ4_1: return launchers_of<Q4_1>();
    case DType::kQ5_0: return launchers_of<Q5_0>();
    case DType::kQ5_1: return launchers_of<Q5_1>();
    case DType::kQ8_0: return launchers_of<Q8_0>();
    case DType::kIQ4_NL: return launchers_of<IQ4_NL>();
    case DType::kMXFP4: return launchers_of<MXFP4>();
    default: return nullptr;
  }
}

}  // namespace fathom::cuda
