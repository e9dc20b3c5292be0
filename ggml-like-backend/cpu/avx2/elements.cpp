#include "cpu/element_kernels.h"
#include "cpu/element_kernels_impl.h"

namespace fathom::cpu::avx2 {

extern const ElementKernels elements;
const ElementKernels elements = {rms_norm, add, silu_times, add_scaled, sum_squares, weigh_rows, pool_rows};

}  // namespace fathom::cpu::avx2
