// The kernels of each instruction set by weight type. Calling one is only allowed on a machine that has the
// instructions: kernels.cpp sees to that.
#pragma once

#include "cpu/matmul_task.h"

namespace fathom::cpu {

// clang-format off
#define FATHOM_DECLARE_KERNELS                                          \
  extern const MatmulKernel f32, f16, bf16;                             \
  extern const MatmulKernel q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, mxfp4; \
  extern const MatmulKernel q2_k, q3_k, q4_k, q5_k, q6_k;               \
  extern const MatmulKernel iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s, iq4_xs;
// clang-format on

namespace avx2 {
FATHOM_DECLARE_KERNELS
}
namespace avx_vnni {  // quantized types; those of floats are AVX2's
FATHOM_DECLARE_KERNELS
}
namespace avx512 {
FATHOM_DECLARE_KERNELS
}
#undef FATHOM_DECLARE_KERNELS

}  // namespace fathom::cpu
