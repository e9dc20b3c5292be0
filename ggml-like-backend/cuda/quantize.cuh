// Activations in int8: 32 values by the lanes of a warp.
#pragma once

#include "cuda/device.h"
#include "cuda/matmul.h"

namespace fathom::cuda {

/// Lane i brings value i of a block of 32; writes 32 bytes at q and the scale: d = max |v| / 127, q = v / d to the
/// nearest integer, ties to even. Values have to be finite.
FATHOM_DEVICE void quantize_block(float v, int8_t* q, ActScale* scale) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float top = fabsf(v);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
  const int rounded = top > 0 ? __float2int_rn(v * (127.0F / top)) : 0;
  int sum = rounded;
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  q[lane] = static_cast<int8_t>(rounded);
  if (lane % 16 == 0) scale->sum[lane / 16] = static_cast<int16_t>(sum);
  if (lane == 0) scale->d = top / 127.0F;
}

}  // namespace fathom::cuda
