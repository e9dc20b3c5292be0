// AVX2 matrix kernels of the K formats.
#define FATHOM_ISA avx2
#include "cpu/avx2/quantize_act.h"
#include "cpu/avx2/rows.h"
#include "cpu/isa_tables.h"

namespace fathom::cpu::avx2 {

const MatmulKernel q2_k = {Q2_K::kAct, quantize_act_avx2, matmul<Q2_K>};
const MatmulKernel q3_k = {Q3_K::kAct, quantize_act_avx2, matmul<Q3_K>};
const MatmulKernel q4_k = {Q4_K::kAct, quantize_act_avx2, matmul<Q4_K>};
const MatmulKernel q5_k = {Q5_K::kAct, quantize_act_avx2, matmul<Q5_K>};
const MatmulKernel q6_k = {Q6_K::kAct, quantize_act_avx2, matmul<Q6_K>};

}  // namespace fathom::cpu::avx2
