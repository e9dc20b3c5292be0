// Scalar decode of the 32-element formats with one scale and, for the _1 forms, a minimum. Layouts: blocks.h.
#pragma once

#include "core/float_convert.h"
#include "core/quant/blocks.h"

namespace fathom::quant {

/// Writes the 32 values of a block. The arithmetic (one product, then one sum) defines the format.
inline void decode(const BlockQ4_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>((b.qs[j] & 15) - 8);
    y[j + 16] = d * static_cast<float>((b.qs[j] >> 4) - 8);
  }
}

inline void decode(const BlockQ4_1& b, float* y) {
  const float d = f16_to_f32(b.d);
  const float m = f16_to_f32(b.m);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(b.qs[j] & 15) + m;
    y[j + 16] = d * static_cast<float>(b.qs[j] >> 4) + m;
  }
}

inline void decode(const BlockQ5_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 16; ++j) {
    const int low = (b.qs[j] & 15) | static_cast<int>((b.qh >> j) & 1u) << 4;
    const int high = (b.qs[j] >> 4) | static_cast<int>((b.qh >> (j + 16)) & 1u) << 4;
    y[j] = d * static_cast<float>(low - 16);
    y[j + 16] = d * static_cast<float>(high - 16);
  }
}

inline void decode(const BlockQ5_1& b, float* y) {
  const float d = f16_to_f32(b.d);
  const float m = f16_to_f32(b.m);
  for (int j = 0; j < 16; ++j) {
    const int low = (b.qs[j] & 15) | static_cast<int>((b.qh >> j) & 1u) << 4;
    const int high = (b.qs[j] >> 4) | static_cast<int>((b.qh >> (j + 16)) & 1u) << 4;
    y[j] = d * static_cast<float>(low) + m;
    y[j + 16] = d * static_cast<float>(high) + m;
  }
}

inline void decode(const BlockQ8_0& b, float* y) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(b.qs[j]);
}

}  // namespace fathom::quant
