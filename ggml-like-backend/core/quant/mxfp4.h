// MXFP4: 32 FP4 (e2m1) values with one power-of-two scale. Layout: blocks.h. Source: OCP Microscaling Formats 1.0.
#pragma once

#include "core/quant/blocks.h"
#include "core/quant/fp8.h"

namespace fathom::quant {

/// 2^(e - 128): half of the E8M0 value, because kE2M1Doubled is twice the FP4 value.
inline float mxfp4_half_scale(uint8_t e) { return 0.5f * e8m0_to_f32(e); }

inline void decode(const BlockMXFP4& b, float* y) {
  const float d = mxfp4_half_scale(b.e);
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(kE2M1Doubled[b.qs[j] & 15]);
    y[j + 16] = d * static_cast<float>(kE2M1Doubled[b.qs[j] >> 4]);
  }
}

}  // namespace fathom::quant
