// The encoders by instruction set, and what they share. Internal to core/quant: callers use quantize.h.
//
// Every encoder gets x of some blocks and positive weights w of the same length, and minimises sum(w * (x - y)^2) over
// the blocks it can write. All work is done on x times a power of two (BlockScale), so that squares neither overflow
// nor vanish.
#pragma once

#include <cstdint>

#include "core/quant/blocks.h"

namespace fathom::quant {

/// n blocks that lie one after the other. Null w: all ones.
using EncodeBlocks = void (*)(const float* x, const float* w, void* blocks, int64_t n);

/// What is compiled for one instruction set. All of them write the same bytes.
struct Encoders {
  const char* isa;  ///< "avx512", "avx2", "portable"
  static constexpr int kTypeIds = 40;
  EncodeBlocks by_type[kTypeIds];  ///< by GGUF type id, null where it has no blocks
  /// Largest magnitude of n floats; infinity where one is infinite, NaN where one is not a number.
  float (*largest)(const float* x, int64_t n);
  /// n halves, at any address, as floats.
  void (*widen_halves)(const void* halves, float* out, int64_t n);
};

namespace portable {
extern const Encoders encoders;
}
namespace avx2 {
extern const Encoders encoders;
}
namespace avx512 {
extern const Encoders encoders;
}

/// The sets that this machine runs, best first; there is always one. The list and what it points to live as long as the
/// program.
struct EncoderList {
  const Encoders* sets[3];
  int n;
};
const EncoderList& usable_encoders();

/// A half-precision factor: its bits, and its value in the block's own units.
struct HalfFactor {
  uint16_t bits = 0;
  float value = 0;
};

/// Brings a block to magnitudes in [1, 2) by an exact power of two, and factors back to what is stored.
class BlockScale {
 public:
  /// Far below the smallest half, 2^-24, even with the longest ladder of levels (2^12) on top.
  static constexpr float kTooSmall = 0x1p-60f;

  explicit BlockScale(float largest_magnitude);
  /// No half-precision factor could reach the values.
  bool is_zero() const { return is_zero_; }
  float down() const { return down_; }  ///< x times this is scaled
  float up() const { return up_; }      ///< and back

  /// The half nearest to `factor` (given in scaled units), but never zero unless factor is. Throws Error{kModel} if it
  /// exceeds the largest half.
  HalfFactor to_half(float factor) const;

 private:
  float up_ = 0, down_ = 0;
  bool is_zero_ = false;
};

/// Nearest of kIQ4Values to t, found at floor(2 t) + kOffset.
struct IQ4Nearest {
  static constexpr int kOffset = 256;
  float level[2 * kOffset];
  uint8_t code[2 * kOffset];
};
extern const IQ4Nearest kIQ4Nearest;

}  // namespace fathom::quant
