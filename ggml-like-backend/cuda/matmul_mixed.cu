// Experts of one type and shared experts of another in one launch: what converters make of one type where an expert's
// rows do not divide into blocks of 256 and the shared experts' do (V2-Lite: 1408 and 2816 values), and V4's files,
// whose shared experts are Q8_0.
#include "cuda/gemv.cuh"

namespace fathom::cuda {

namespace {

struct Pair {
  DType routed, shared;
  FfnLauncher launcher;
};

template <size_t kN> FfnLauncher find_pair(const Pair (&pairs)[kN], DType routed, DType shared) {
  for (const Pair& pair : pairs) {
    if (pair.routed == routed && pair.shared == shared) return pair.launcher;
  }
  return nullptr;
}

}  // namespace

FfnLauncher mixed_gate_up_launcher(DType routed, DType shared) {
  static constexpr Pair kPairs[] = {{DType::kMXFP4, DType::kQ8_0, &launch_gate_up_gemv<MXFP4, Q8_0>},
                                    {DType::kQ4_K, DType::kQ8_0, &launch_gate_up_gemv<Q4_K, Q8_0>},
                                    {DType::kIQ2_XXS, DType::kQ8_0, &launch_gate_up_gemv<IQ2_XXS, Q8_0>}};
  return find_pair(kPairs, routed, shared);
}

FfnLauncher mixed_down_launcher(DType routed, DType shared) {
  static constexpr Pair kPairs[] = {{DType::kQ8_0, DType::kQ6_K, &launch_down_gemv<Q8_0, Q6_K>},
                                    {DType::kQ5_1, DType::kQ5_K, &launch_down_gemv<Q5_1, Q5_K>},
                                    {DType::kQ5_0, DType::kQ4_K, &launch_down_gemv<Q5_0, Q4_K>},
                                    {DType::kIQ4_NL, DType::kIQ4_XS, &launch_down_gemv<IQ4_NL, IQ4_XS>},
                                    {DType::kMXFP4, DType::kQ8_0, &launch_down_gemv<MXFP4, Q8_0>},
                                    {DType::kQ4_K, DType::kQ8_0, &launch_down_gemv<Q4_K, Q8_0>},
                                    {DType::kQ6_K, DType::kQ8_0, &launch_down_gemv<Q6_K, Q8_0>},
                                    {DType::kQ2_K, DType::kQ8_0, &launch_down_gemv<Q2_K, Q8_0>}};
  return find_pair(kPairs, routed, shared);
}

}  // namespace fathom::cuda
