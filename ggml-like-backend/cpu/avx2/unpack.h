// From blocks of 8 weight rows to a panel. unpack(format, rows, offset, n, panel): n blocks at rows[i] + offset.
#pragma once

#include "cpu/avx2/decode_block.h"
#include "cpu/avx2/panel.h"

namespace fathom::cpu::avx2 {

/// Transposes 8 rows of 32 bytes: out[g], lane i = bytes 4g..4g+3 of row i.
static inline void transpose32(const uint8_t* const* rows, int64_t offset, __m256i* out) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i in[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      in[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(rows[j] + offset + 16 * half)),
                                      load16(rows[j + 4] + offset + 16 * half), 1);
    }
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    out[4 * half] = _mm256_unpacklo_epi64(a, c);
    out[4 * half + 1] = _mm256_unpackhi_epi64(a, c);
    out[4 * half + 2] = _mm256_unpacklo_epi64(b, d);
    out[4 * half + 3] = _mm256_unpackhi_epi64(b, d);
  }
}

/// Any format: decode row by row, then transpose.
template <typename Format>
static inline void unpack(Format, const uint8_t* const* rows, int64_t offset, int n, Panel& panel) {
  constexpr int kScales = Format::kElements / Format::kSub;
  alignas(32) uint8_t u[8][Format::kElements];
  const uint8_t* starts[8];
  for (int i = 0; i < 8; ++i) starts[i] = u[i];
  const __m256i flip = _mm256_set1_epi8(Format::kMaxU == 255 ? static_cast<char>(0x80) : 0);
  for (int block = 0; block < n; ++block) {
    for (int i = 0; i < 8; ++i) {
      float scale[kScales], min[kScales];
      decode(*reinterpret_cast<const typename Format::Block*>(rows[i] + offset + block * Format::kBytes), u[i], scale, min);
      for (int s = 0; s < kScales; ++s) {
        panel.scale[block * kScales + s][i] = scale[s];
        if constexpr (Format::kHasMin) panel.min[block * kScales + s][i] = min[s];
      }
    }
    for (int part = 0; part < Format::kElements / 32; ++part) {
      __m256i out[8];
      transpose32(starts, part * 32, out);
      for (int g = 0; g < 8; ++g) {
        uint8_t* to = panel.u[(block * Format::kElements + part * 32) / 4 + g];
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_xor_si256(out[g], flip));
      }
    }
  }
}

}  // namespace fathom::cpu::avx2
