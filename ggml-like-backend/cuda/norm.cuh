// Root-mean-square norm of a row by a block of any number of warps, the same bits whatever that number is: the row
// belongs to kNormShares shares, of which a thread takes one or several; a share has four neighbours of every
// 4 * kNormShares.
#pragma once

#include "cuda/element.cuh"
#include "cuda/quantize.cuh"

namespace fathom::cuda {

constexpr int kNormShares = 256;
constexpr int kNormFours = 8;  ///< of a share, where a thread keeps them

namespace detail {

/// Elements i .. i + 3 of a row of n, zeros behind it. Other blocks of this launch may have written them.
FATHOM_DEVICE float4 load_four(const float* x, int i, int n) {
  if (n % 4 == 0) return __ldcg(reinterpret_cast<const float4*>(x + i));
  auto at = [&](int j) { return j < n ? __ldcg(x + j) : 0.0F; };
  return make_float4(at(i), at(i + 1), at(i + 2), at(i + 3));
}

}  // namespace detail

/// Whether norm_fours takes rows of n in this block.
FATHOM_DEVICE bool is_normed_in_fours(int n) {
  return n % 4 == 0 && n <= 4 * kNormShares * kNormFours && blockDim.x == kNormShares;
}

/// norm_row by a share for each thread, which keeps its values: made once, all loads under way together. value_at(i)
/// gives elements i .. i + 3.
template <typename ValueAt>
FATHOM_DEVICE void norm_fours(ValueAt&& value_at, const float* weight, float* out, int n, float eps, int8_t* q,
                              ActScale* scales, float* scratch) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float4 zero = make_float4(0, 0, 0, 0);
  float4 v[kNormFours];
#pragma unroll
  for (int j = 0; j < kNormFours; ++j) {
    const int i = 4 * (thread + j * kNormShares);
    v[j] = i < n ? value_at(i) : zero;
  }
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kNormFours; ++j)
    squares = fmaf(v[j].w, v[j].w, fmaf(v[j].z, v[j].z, fmaf(v[j].y, v[j].y, fmaf(v[j].x, v[j].x, squares))));
  squares = warp_sum(squares);
  if (lane == 0) scratch[thread / 32] = squares;
  __syncthreads();
  const float total = warp_sum(lane < kNormShares / 32 ? scratch[lane] : 0.0F);
  const float scale = 1.0F / sqrtf(total / static_cast<float>(n) + eps);
#pragma unroll
  for (int j = 0; j < kNormFours; ++j) {
    const int i = 4 * (thread + j * kNormShares);
    if (i - 4 * lane >= n) break;  // whole warps
    const float4 w = weight == nullptr ? make_float4(1, 1, 1, 1)
                     : i < n           ? __ldg(reinterpret_cast<const float4*>(weight + i))
                                       : zero;
    const float4 y =
        make_float4(v[j].x * scale * w.x, v[j].y * scale * w.y, v[j].z * scale * w.z, v[j].w * scale * w.w);
    if (i < n) *reinterpret_cast<float4*>(out + i) = y;
    if (q != nullptr) quantize_fours(y, i < n, q + i / 32 * 32, scales + i / 32);
  }
  __syncthreads();
}

/// out = x / sqrt(mean(x^2) + eps) * weight (null: ones), and the same in int8 unless q is null (n then is a multiple
/// of 32). x, out and weight are 16-byte aligned if n is a multiple of 4. All threads of the block; `scratch`
/// [kNormShares / 32] can be used again afterwards.
FATHOM_DEVICE void norm_row(const float* x, const float* weight, float* out, int n, float eps, int8_t* q,
                            ActScale* scales, float* scratch) {
  if (is_normed_in_fours(n))
    return norm_fours([x](int i) { return __ldcg(reinterpret_cast<const float4*>(x + i)); }, weight, out, n, eps, q,
                      scales, scratch);
  const int step = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x % 32);
  for (int share = static_cast<int>(threadIdx.x); share < kNormShares; share += step) {
    float squares = 0;
#pragma unroll 8
    for (int i = 4 * share; i < n; i += 4 * kNormShares) {
      const float4 v = detail::load_four(x, i, n);
      squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
    }
    squares = warp_sum(squares);
    if (lane == 0) scratch[share / 32] = squares;
  }
  __syncthreads();
  const float total = warp_sum(lane < kNormShares / 32 ? scratch[lane] : 0.0F);
  const float scale = 1.0F / sqrtf(total / static_cast<float>(n) + eps);
  for (int share = static_cast<int>(threadIdx.x); share < kNormShares; share += step) {
    // Whole warps: eight lanes make a block of 32 in int8.
#pragma unroll 4
    for (int first = 4 * (share - lane); first < n; first += 4 * kNormShares) {
      const int i = first + 4 * lane;
      const float4 v = i < n ? detail::load_four(x, i, n) : make_float4(0, 0, 0, 0);
      float4 y = make_float4(0, 0, 0, 0);
      if (n % 4 != 0) {
        auto weight_of = [&](int j) { return weight != nullptr ? weight[j] : 1.0F; };
        if (i < n) out[i] = v.x * scale * weight_of(i);
        if (i + 1 < n) out[i + 1] = v.y * scale * weight_of(i + 1);
        if (i + 2 < n) out[i + 2] = v.z * scale * weight_of(i + 2);
        if (i + 3 < n) out[i + 3] = v.w * scale * weight_of(i + 3);
      } else if (i < n) {
        const float4 w =
            weight != nullptr ? __ldg(reinterpret_cast<const float4*>(weight + i)) : make_float4(1, 1, 1, 1);
        y = make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
        *reinterpret_cast<float4*>(out + i) = y;
      }
      if (q != nullptr) quantize_fours(y, i < n, q + i / 32 * 32, scales + i / 32);
    }
  }
  __syncthreads();
}

}  // namespace fathom::cuda
