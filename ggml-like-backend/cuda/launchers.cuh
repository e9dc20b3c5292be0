// The table of a format's launchers; included by the files that compile one family of formats each.
#pragma once

#include "cuda/gemv.cuh"
#include "cuda/tiles.cuh"

namespace fathom::cuda {

/// A thread takes one chunk apart.
template <typename Format> FATHOM_KERNEL(256, 1) decode_kernel(DecodeLaunch l) {
  const int per_row = Format::kIsFloat ? (l.w.k + Format::kBlock * 16 - 1) / 16 : l.w.k / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= l.n_rows * per_row) return;
  const int64_t row = i / per_row;
  const int chunk = static_cast<int>(i % per_row);
  const uint8_t* from = l.w.data + (l.ids != nullptr ? l.ids[row / l.copies] : row) * l.w.row_bytes;
  auto store = [&](int e, float v) {
    if (l.out_f32 != nullptr) {
      l.out_f32[row * l.w.k + e] = v;
    } else {
      l.out_bf16[row * l.w.k + e] = float_to_bf16(v);
    }
  };
  if constexpr (Format::kIsFloat) {
    constexpr int kPer = Format::kPerChunk;
    for (int e = 16 * chunk; e < min(16 * chunk + 16, l.w.k); e += kPer) {
      const uint4 packed = detail::load16(from + e * (16 / kPer));
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (e + j < l.w.k) store(e + j, Format::element(packed, j));
      }
    }
  } else {
    const int block = chunk / Format::kChunks, sub = chunk % Format::kChunks;
    const Chunk c = Format::load(from, l.w.k / Format::kBlock, block, sub, l.grids);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = block * Format::kBlock + Format::first(sub) + h * Format::kSecond;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int q = static_cast<int8_t>(c.q[4 * h + j / 4] >> (8 * (j % 4))) - Format::kOffset;
        const float product = c.scale_of(h) * static_cast<float>(q);
        store(first + j, Format::kHasMin ? product + c.minimum_of(h) : product);
      }
    }
  }
}

template <typename Format> void launch_decode(const DecodeLaunch& l) {
  const int64_t n = l.n_rows * (Format::kIsFloat ? (l.w.k + 15) / 16 : l.w.k / 32);
  launch(&decode_kernel<Format>, static_cast<unsigned>((n + 255) / 256), 256, 0, l.stream, l);
}

template <typename Format> const FormatLaunchers* launchers_of() {
  static constexpr FormatLaunchers kTable{&launch_linear_gemv<Format>, &launch_gate_up_gemv<Format>,
                                          &launch_down_gemv<Format>,   &launch_linear_tiles<Format>,
                                          &launch_ffn_tiles<Format>,   &launch_decode<Format>};
  return &kTable;
}

}  // namespace fathom::cuda
