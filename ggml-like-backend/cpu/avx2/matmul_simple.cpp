// AVX2 matrix kernels of the formats with blocks of 32 elements.
#define FATHOM_ISA avx2
#include "cpu/avx2/quantize_act.h"
#include "cpu/avx2/rows.h"
#include "cpu/isa_tables.h"

namespace fathom::cpu::avx2 {

const MatmulKernel q4_0 = {Q4_0::kAct, quantize_act_avx2, matmul<Q4_0>};
const MatmulKernel q4_1 = {Q4_1::kAct, quantize_act_avx2, matmul<Q4_1>};
const MatmulKernel q5_0 = {Q5_0::kAct, quantize_act_avx2, matmul<Q5_0>};
const MatmulKernel q5_1 = {Q5_1::kAct, quantize_act_avx2, matmul<Q5_1>};
const MatmulKernel q8_0 = {Q8_0::kAct, quantize_act_avx2, matmul<Q8_0>};
const MatmulKernel iq4_nl = {IQ4_NL::kAct, quantize_act_avx2, matmul<IQ4_NL>};
const MatmulKernel mxfp4 = {MXFP4::kAct, quantize_act_avx2, matmul<MXFP4>};

}  // namespace fathom::cpu::avx2
