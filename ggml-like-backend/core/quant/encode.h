// The encoders, one overload per block format, and what they share. Internal to core/quant: callers use quantize.h.
//
// Every encoder gets x of one block and positive weights w of the same length, and minimises sum(w * (x - y)^2) over
// the blocks it can write. All work is done on x times a power of two (BlockScale), so that squares neither overflow
// nor vanish.
#pragma once

#include <cstdint>

#include "core/quant/blocks.h"

namespace fathom::quant {

void encode(const float* x, const float* w, BlockQ4_0* out);
void encode(const float* x, const float* w, BlockQ4_1* out);
void encode(const float* x, const float* w, BlockQ5_0* out);
void encode(const float* x, const float* w, BlockQ5_1* out);
void encode(const float* x, const float* w, BlockQ8_0* out);
void encode(const float* x, const float* w, BlockMXFP4* out);
void encode(const float* x, const float* w, BlockIQ4_NL* out);
void encode(const float* x, const float* w, BlockIQ4_XS* out);
void encode(const float* x, const float* w, BlockQ2_K* out);
void encode(const float* x, const float* w, BlockQ3_K* out);
void encode(const float* x, const float* w, BlockQ4_K* out);
void encode(const float* x, const float* w, BlockQ5_K* out);
void encode(const float* x, const float* w, BlockQ6_K* out);
void encode(const float* x, const float* w, BlockIQ2_XXS* out);
void encode(const float* x, const float* w, BlockIQ2_XS* out);
void encode(const float* x, const float* w, BlockIQ2_S* out);
void encode(const float* x, const float* w, BlockIQ3_XXS* out);
void encode(const float* x, const float* w, BlockIQ3_S* out);
void encode(const float* x, const float* w, BlockIQ1_S* out);
void encode(const float* x, const float* w, BlockIQ1_M* out);

/// A half-precision factor: its bits, and its value in the block's own units.
struct HalfFactor {
  uint16_t bits = 0;
  float value = 0;
};

/// Brings a block to magnitudes in [1, 2) by an exact power of two, and factors back to what is stored.
class BlockScale {
 public:
  /// Copies x[n] * 2^-exponent to scaled[n]. is_zero() if no half-precision factor could reach the values.
  BlockScale(const float* x, int n, float* scaled);
  bool is_zero() const { return is_zero_; }
  float max_magnitude() const { return max_magnitude_; }  ///< of scaled

  /// The half nearest to `factor` (given in scaled units), but never zero unless factor is. Throws Error{kModel} if it
  /// exceeds the largest half.
  HalfFactor to_half(float factor) const;

 private:
  int exponent_ = 0;
  float max_magnitude_ = 0;
  bool is_zero_ = false;
};

}  // namespace fathom::quant
