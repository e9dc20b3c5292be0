// From blocks of 16 weight rows to a panel. unpack(format, rows, offset, n, panel): n blocks at rows[i] + offset.
#pragma once

#include "cpu/avx2/decode_block.h"
#include "cpu/avx512/panel.h"

namespace fathom::cpu::avx512 {

/// Transposes 16 rows of 32 bytes: out[g], lane i = bytes 4g..4g+3 of row i.
static inline void transpose32(const uint8_t* const* rows, int64_t offset, __m512i* out) {
  __m512i low[4], high[4];  // first and second 16 bytes of rows j, j + 4, j + 8, j + 12
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_inserti64x4(_mm512_castsi256_si512(load32(rows[j] + offset)), load32(rows[j + 4] + offset), 1);
    const __m512i b = _mm512_inserti64x4(_mm512_castsi256_si512(load32(rows[j + 8] + offset)), load32(rows[j + 12] + offset), 1);
    low[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    high[j] = _mm512_shuffle_i32x4(a, b, 0xdd);
  }
  const auto transpose4 = [](const __m512i* in, __m512i* to) {
    const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
    const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
    to[0] = _mm512_unpacklo_epi64(a, c);
    to[1] = _mm512_unpackhi_epi64(a, c);
    to[2] = _mm512_unpacklo_epi64(b, d);
    to[3] = _mm512_unpackhi_epi64(b, d);
  };
  transpose4(low, out);
  transpose4(high, out + 4);
}

/// Any format: decode row by row, then transpose.
template <typename Format>
static inline void unpack(Format, const uint8_t* const* rows, int64_t offset, int n, Panel& panel) {
  constexpr int kScales = Format::kElements / Format::kSub;
  alignas(64) uint8_t u[16][Format::kElements];
  const uint8_t* starts[16];
  for (int i = 0; i < 16; ++i) starts[i] = u[i];
  for (int block = 0; block < n; ++block) {
    for (int i = 0; i < 16; ++i) {
      float scale[kScales], min[kScales];
      decode(*reinterpret_cast<const typename Format::Block*>(rows[i] + offset + block * Format::kBytes), u[i], scale, min);
      for (int s = 0; s < kScales; ++s) {
        panel.scale[block * kScales + s][i] = scale[s];
        if constexpr (Format::kHasMin) panel.min[block * kScales + s][i] = min[s];
      }
    }
    for (int part = 0; part < Format::kElements / 32; ++part) {
      __m512i out[8];
      transpose32(starts, part * 32, out);
      for (int g = 0; g < 8; ++g) _mm512_store_si512(panel.u[(block * Format::kElements + part * 32) / 4 + g], out[g]);
    }
  }
}

}  // namespace fathom::cpu::avx512
