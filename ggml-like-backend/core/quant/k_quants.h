// Scalar decode of Q2_K to Q6_K: super-blocks of 256 elements whose sub-blocks of 16 or 32 have small integer scales.
// Layouts: blocks.h.
#pragma once

#include "core/float_convert.h"
#include "core/quant/blocks.h"

namespace fathom::quant {

inline void decode(const BlockQ2_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, s = i % 128 / 32, l = i % 32;
    const int sc = b.scales[i / 16];
    const int q = (b.qs[half * 32 + l] >> (2 * s)) & 3;
    y[i] = d * static_cast<float>(sc & 15) * static_cast<float>(q) - dmin * static_cast<float>(sc >> 4);
  }
}

/// Scale of sub-block j (0..15) of Q3_K, -32..31.
inline int q3_k_scale(const BlockQ3_K& b, int j) {
  const int low = j < 8 ? b.scales[j] & 15 : b.scales[j - 8] >> 4;
  const int high = (b.scales[8 + j % 4] >> (2 * (j / 4))) & 3;
  return (low | high << 4) - 32;
}

inline void decode(const BlockQ3_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, s = i % 128 / 32, l = i % 32;
    const int low = (b.qs[half * 32 + l] >> (2 * s)) & 3;
    const int high = (b.hmask[l] >> (half * 4 + s)) & 1;
    y[i] = d * static_cast<float>(q3_k_scale(b, i / 16)) * static_cast<float>(low + 4 * high - 4);
  }
}

/// Scale and minimum of sub-block j (0..7) of Q4_K and Q5_K, each 0..63, from the 12 packed bytes.
inline void get_scale_min(const uint8_t* packed, int j, int* scale, int* min) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    *min = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

inline void decode(const BlockQ4_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (int j = 0; j < 8; ++j) {
    int scale = 0, min = 0;
    get_scale_min(b.scales, j, &scale, &min);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int q = (b.qs[j / 2 * 32 + l] >> (4 * (j % 2))) & 15;
      y[32 * j + l] = ds * static_cast<float>(q) - dm;
    }
  }
}

inline void decode(const BlockQ5_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (int j = 0; j < 8; ++j) {
    int scale = 0, min = 0;
    get_scale_min(b.scales, j, &scale, &min);
    const float ds = d * static_cast<float>(scale);
    const float dm = dmin * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const int q = ((b.qs[j / 2 * 32 + l] >> (4 * (j % 2))) & 15) | ((b.qh[l] >> j) & 1) << 4;
      y[32 * j + l] = ds * static_cast<float>(q) - dm;
    }
  }
}

inline void decode(const BlockQ6_K& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, k = i % 128 / 32, l = i % 32;
    const int low = (b.ql[half * 64 + (k & 1) * 32 + l] >> (k < 2 ? 0 : 4)) & 15;
    const int high = (b.qh[half * 32 + l] >> (2 * k)) & 3;
    y[i] = d * static_cast<float>(b.scales[i / 16]) * static_cast<float>((low | high << 4) - 32);
  }
}

}  // namespace fathom::quant
