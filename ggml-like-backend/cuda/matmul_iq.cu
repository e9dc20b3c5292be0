#include "cuda/launchers.cuh"

namespace fathom::cuda {

const FormatLaunchers* iq_launchers(DType dtype) {
  switch (dtype) {
    case DType::kIQ4_XS: return launchers_of<IQ4_XS>();
    case DType::kIQ2_XXS: return launchers_of<IQ2_XXS>();
    case DType::kIQ2_XS: return launchers_of<IQ2_XS>();
    case DType::kIQ2_S: return launchers_of<IQ2_S>();
    case DType::kIQ3_XXS: return launchers_of<IQ3_XXS>();
    case DType::kIQ3_S: return launchers_of<IQ3_S>();
    case DType::kIQ1_S: return launchers_of<IQ1_S>();
    case DType::kIQ1_M: return launchers_of<IQ1_M>();
    default: return nullptr;
  }
}

}  // namespace fathom::cuda
