// AVX-VNNI matrix kernels of the IQ formats with blocks of 256 elements.
#define FATHOM_ISA avx_vnni
#include "cpu/avx2/quantize_act.h"
#include "cpu/avx2/row_formats_iq.h"
#include "cpu/avx2/rows.h"
#include "cpu/isa_tables.h"

namespace fathom::cpu::avx_vnni {

const MatmulKernel iq1_s = {IQ1_S::kAct, quantize_act_avx2, matmul<IQ1_S>};
const MatmulKernel iq1_m = {IQ1_M::kAct, quantize_act_avx2, matmul<IQ1_M>};
const MatmulKernel iq2_xxs = {IQ2_XXS::kAct, quantize_act_avx2, matmul<IQ2_XXS>};
const MatmulKernel iq2_xs = {IQ2_XS::kAct, quantize_act_avx2, matmul<IQ2_XS>};
const MatmulKernel iq2_s = {IQ2_S::kAct, quantize_act_avx2, matmul<IQ2_S>};
const MatmulKernel iq3_xxs = {IQ3_XXS::kAct, quantize_act_avx2, matmul<IQ3_XXS>};
const MatmulKernel iq3_s = {IQ3_S::kAct, quantize_act_avx2, matmul<IQ3_S>};
const MatmulKernel iq4_xs = {IQ4_XS::kAct, quantize_act_avx2, matmul<IQ4_XS>};

}  // namespace fathom::cpu::avx_vnni
