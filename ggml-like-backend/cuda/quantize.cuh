// Activations in int8: 32 values by the lanes of a warp, or by eight of them.
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

/// The same for lanes that bring four neighbours each: lanes 8 i .. 8 i + 7 one block; `q` and `scale` are their own.
/// The whole warp calls it; blocks that are not there are not written.
FATHOM_DEVICE void quantize_fours(const float4& v, bool is_there, int8_t* q, ActScale* scale) {
  const int lane = static_cast<int>(threadIdx.x % 8);
  float top = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
  const float factor = 127.0F / top;
  auto round = [&](float x) { return top > 0 ? __float2int_rn(x * factor) : 0; };
  const int a = round(v.x), b = round(v.y), c = round(v.z), d = round(v.w);
  int sum = a + b + c + d;
#pragma unroll
  for (int offset = 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (!is_there) return;
  *reinterpret_cast<uint32_t*>(q + 4 * lane) = static_cast<uint32_t>(a & 255) | static_cast<uint32_t>(b & 255) << 8 |
                                               static_cast<uint32_t>(c & 255) << 16 | static_cast<uint32_t>(d) << 24;
  if (lane % 4 == 0) scale->sum[lane / 4] = static_cast<int16_t>(sum);
  if (lane == 0) scale->d = top / 127.0F;
}

}  // namespace fathom::cuda
