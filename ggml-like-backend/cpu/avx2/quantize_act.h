#pragma once

#include "cpu/matmul_task.h"

namespace fathom::cpu {

/// x[k] to k / 32 ActBlocks. Needs AVX2.
void quantize_act_avx2(ActFormat format, const float* x, void* act, int64_t k);

}  // namespace fathom::cpu
