// Scalar decode of the IQ formats: groups of 8 (or 4) elements stored as the index of a grid point and their signs.
// Layouts: blocks.h; grids: codebooks.h.
#pragma once

#include "core/float_convert.h"
#include "core/quant/blocks.h"
#include "core/quant/codebooks.h"

namespace fathom::quant {

inline void decode(const BlockIQ4_NL& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(kIQ4Values[b.qs[j] & 15]);
    y[j + 16] = d * static_cast<float>(kIQ4Values[b.qs[j] >> 4]);
  }
}

inline void decode(const BlockIQ4_XS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const int ls = ((b.scales_l[ib / 2] >> (4 * (ib & 1))) & 15) | ((b.scales_h >> (2 * ib)) & 3) << 4;
    const float dl = d * static_cast<float>(ls - 32);
    for (int j = 0; j < 16; ++j) {
      y[32 * ib + j] = dl * static_cast<float>(kIQ4Values[b.qs[16 * ib + j] & 15]);
      y[32 * ib + j + 16] = dl * static_cast<float>(kIQ4Values[b.qs[16 * ib + j] >> 4]);
    }
  }
}

/// kElements magnitudes in the bytes of `grid`, negated where `signs` has a bit.
template <int kElements> inline void decode_signed(uint64_t grid, unsigned signs, float scale, float* y) {
  for (int j = 0; j < kElements; ++j) {
    const float magnitude = scale * static_cast<float>((grid >> (8 * j)) & 255u);
    y[j] = (signs >> j) & 1u ? -magnitude : magnitude;
  }
}

inline void decode(const BlockIQ2_XXS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const uint32_t indices = b.qs[4 * ib] | static_cast<uint32_t>(b.qs[4 * ib + 1]) << 16;
    const uint32_t a = b.qs[4 * ib + 2] | static_cast<uint32_t>(b.qs[4 * ib + 3]) << 16;
    const float dl = d * (0.5f + static_cast<float>(a >> 28)) * 0.25f;
    for (int l = 0; l < 4; ++l) {
      const unsigned signs = kEvenSigns[(a >> (7 * l)) & 127u];
      decode_signed<8>(kIQ2XXSGrid[(indices >> (8 * l)) & 255u], signs, dl, y + 32 * ib + 8 * l);
    }
  }
}

inline void decode(const BlockIQ2_XS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int group = 0; group < 32; ++group) {
    const int ib = group / 4, l = group % 4;
    const float dl = d * (0.5f + static_cast<float>((b.scales[ib] >> (4 * (l / 2))) & 15)) * 0.25f;
    const unsigned q = b.qs[group];
    decode_signed<8>(kIQ2XSGrid[q & 511u], kEvenSigns[q >> 9], dl, y + 8 * group);
  }
}

inline void decode(const BlockIQ2_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int group = 0; group < 32; ++group) {
    const int ib = group / 4, l = group % 4;
    const float dl = d * (0.5f + static_cast<float>((b.scales[ib] >> (4 * (l / 2))) & 15)) * 0.25f;
    const int index = b.qs[group] | ((b.qh[ib] >> (2 * l)) & 3) << 8;
    decode_signed<8>(kIQ2SGrid[index], b.signs[group], dl, y + 8 * group);
  }
}

inline void decode(const BlockIQ3_XXS& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const uint32_t a = b.signs_scale[ib];
    const float dl = d * (0.5f + static_cast<float>(a >> 28)) * 0.5f;
    for (int k = 0; k < 8; ++k) {
      const unsigned signs = kEvenSigns[(a >> (7 * (k / 2))) & 127u] >> (4 * (k & 1));
      decode_signed<4>(kIQ3XXSGrid[b.qs[8 * ib + k]], signs, dl, y + 32 * ib + 4 * k);
    }
  }
}

inline void decode(const BlockIQ3_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const float dl = d * static_cast<float>(1 + 2 * ((b.scales[ib / 2] >> (4 * (ib & 1))) & 15));
    for (int k = 0; k < 8; ++k) {
      const int index = b.qs[8 * ib + k] | ((b.qh[ib] >> k) & 1) << 8;
      const unsigned signs = b.signs[4 * ib + k / 2] >> (4 * (k & 1));
      decode_signed<4>(kIQ3SGrid[index], signs, dl, y + 32 * ib + 4 * k);
    }
  }
}

/// Eight ternary values shifted by delta.
inline void decode_ternary(uint64_t grid, float delta, float scale, float* y) {
  for (int j = 0; j < 8; ++j) {
    y[j] = scale * (static_cast<float>(static_cast<int8_t>((grid >> (8 * j)) & 255u)) + delta);
  }
}

inline void decode(const BlockIQ1_S& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int ib = 0; ib < 8; ++ib) {
    const unsigned qh = b.qh[ib];
    const float dl = d * static_cast<float>(2 * ((qh >> 12) & 7u) + 1);
    const float delta = (qh & 0x8000u) != 0 ? -kIQ1Delta : kIQ1Delta;
    for (int l = 0; l < 4; ++l) {
      const unsigned index = b.qs[4 * ib + l] | ((qh >> (3 * l)) & 7u) << 8;
      decode_ternary(kIQ1SGrid[index], delta, dl, y + 32 * ib + 8 * l);
    }
  }
}

/// The block's scale, whose 16 bits are spread over the top nibbles of the four scale words.
inline float iq1_m_scale(const BlockIQ1_M& b) {
  const unsigned bits =
      b.scales[0] >> 12 | (b.scales[1] >> 8 & 0xf0u) | (b.scales[2] >> 4 & 0xf00u) | (b.scales[3] & 0xf000u);
  return f16_to_f32(static_cast<uint16_t>(bits));
}

inline void decode(const BlockIQ1_M& b, float* y) {
  const float d = iq1_m_scale(b);
  for (int group = 0; group < 32; ++group) {
    const int ib = group / 4, l = group % 4;
    const unsigned s = (b.scales[ib / 2] >> (6 * (ib & 1) + 3 * (l / 2))) & 7u;
    const unsigned high = (b.qh[group / 2] >> (4 * (l & 1))) & 15u;
    const unsigned index = b.qs[group] | (high & 7u) << 8;
    const float delta = (high & 8u) != 0 ? -kIQ1Delta : kIQ1Delta;
    decode_ternary(kIQ1SGrid[index], delta, d * static_cast<float>(2 * s + 1), y + 8 * group);
  }
}

}  // namespace fathom::quant
