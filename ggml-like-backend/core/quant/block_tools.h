// What encoders do first with a block.
#pragma once

#include "core/quant/encode.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

/// scaled[kN] = x times the returned scale's power of two; zeros if it is_zero().
template <int kN> inline BlockScale scaled_block(const float* x, float* scaled) {
  const BlockScale scale(largest_magnitude(x, kN));
  const V8 down = splat8(scale.down());
  for (int i = 0; i < kN; i += 8) store(scaled + i, load8(x + i) * down);
  return scale;
}

}  // namespace fathom::quant::FATHOM_ISA
