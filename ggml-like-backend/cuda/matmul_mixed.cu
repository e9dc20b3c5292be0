// Down matrices of experts and of shared experts in two types: what converters make of one type where an expert's rows
// do not divide into blocks of 256 and the shared experts' do (V2-Lite: 1408 and 2816 values).
#include "cuda/gemv.cuh"

namespace fathom::cuda {

DownLauncher mixed_down_launcher(DType routed, DType shared) {
  const struct {
    DType routed, shared;
    DownLauncher launcher;
  } pairs[] = {{DType::kQ8_0, DType::kQ6_K, &launch_down_gemv<Q8_0, Q6_K>},
               {DType::kQ5_1, DType::kQ5_K, &launch_down_gemv<Q5_1, Q5_K>},
               {DType::kQ5_0, DType::kQ4_K, &launch_down_gemv<Q5_0, Q4_K>},
               {DType::kIQ4_NL, DType::kIQ4_XS, &launch_down_gemv<IQ4_NL, IQ4_XS>}};
  for (const auto& pair : pairs) {
    if (pair.routed == routed && pair.shared == shared) return pair.launcher;
  }
  return nullptr;
}

}  // namespace fathom::cuda
