// Blocks of 32 elements beside each other, one in each lane: whatever an encoder decides for a block is decided for all
// of them at once, and no sum crosses lanes.
#pragma once

#include "core/quant/encode.h"
#include "core/quant/lanes.h"

namespace fathom::quant::FATHOM_ISA {

constexpr int kN = kSmallBlock;

/// rows[0..8) of eight floats become its columns.
inline void transpose8(V8* rows) {
  V8 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int half = 0; half < 8; half += 4) {
    for (int i = 0; i < 2; ++i) {
      u[half + 2 * i] = __builtin_shufflevector(t[half + i], t[half + i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      u[half + 2 * i + 1] = __builtin_shufflevector(t[half + i], t[half + i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = __builtin_shufflevector(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

/// Element i of n blocks, kTrialLanes of them at most, as a vector. Lanes from n on repeat the last block.
struct Elements {
  alignas(64) float lanes[kN][kTrialLanes];

  Elements(const float* x, int n) {
    for (int lane = 0; lane < kTrialLanes; lane += 8) {
      for (int i = 0; i < kN; i += 8) {
        V8 tile[8];
        for (int j = 0; j < 8; ++j) tile[j] = load8(x + least_of(lane + j, n - 1) * kN + i);
        transpose8(tile);
        for (int j = 0; j < 8; ++j) store(&lanes[i + j][lane], tile[j]);
      }
    }
  }
  VT at(int i) const { return load<VT>(lanes[i]); }
};

/// Weights of the elements that are all one: what the compiler leaves out.
struct EqualWeights {
  VT at(int /*i*/) const { return splat<VT>(1); }
};

/// A half-precision factor for each block: its bits, and its value in the block's own units.
struct HalfFactors {
  VI bits;
  VT value;
};

/// Blocks brought to magnitudes in [1, 2) by a power of two each (see BlockScale); one that no half can reach is zeros.
class BlocksBeside {
 public:
  BlocksBeside(const float* x, int n) : elements_(x, n) {
    low_ = high_ = elements_.at(0);
    for (int i = 1; i < kN; ++i) {
      low_ = least(low_, elements_.at(i));
      high_ = most(high_, elements_.at(i));
    }
    const VT largest = most(high_, -low_);
    VI bits;
    __builtin_memcpy(&bits, &largest, sizeof(bits));
    bits &= 0x7f800000;
    __builtin_memcpy(&up_, &bits, sizeof(up_));
    bits = (254 << 23) - bits;
    __builtin_memcpy(&down_, &bits, sizeof(down_));
    down_ = up_ < splat<VT>(0x1p127f) ? down_ : splat<VT>(0x1p-127f);
    down_ = largest < splat<VT>(BlockScale::kTooSmall) ? splat<VT>(0) : down_;
    low_ *= down_;
    high_ *= down_;
    for (int i = 0; i < kN; ++i) store(elements_.lanes[i], elements_.at(i) * down_);
  }

  VT at(int i) const { return elements_.at(i); }
  VT low() const { return low_; }
  VT high() const { return high_; }

  /// BlockScale::to_half for every block.
  HalfFactors to_half(VT factor) const {
    const VT full = factor * up_;
    VI bits;
    __builtin_memcpy(&bits, &full, sizeof(bits));
    const VI magnitude_bits = bits & 0x7fffffff;
    const VI rounded = magnitude_bits - 0x38000000 + 0xfff + ((magnitude_bits >> 13) & 1);
    const VI value_bits = (bits & ~0x7fffffff) | ((rounded & ~0x1fff) + 0x38000000);
    HalfFactors out;
    out.bits = ((bits >> 16) & 0x8000) | (rounded >> 13);
    __builtin_memcpy(&out.value, &value_bits, sizeof(out.value));
    out.value *= down_;
    const VI is_rare = (magnitude_bits < 0x38800000) | (magnitude_bits >= 0x477ff000);
    int n_rare = 0;
    for (int j = 0; j < kTrialLanes; ++j) n_rare -= is_rare[j];
    if (n_rare > 0) {  // halves that are zero, subnormal or too large
      for (int j = 0; j < kTrialLanes; ++j) {
        if (!is_rare[j]) continue;
        const HalfFactor half = BlockScale(up_[j]).to_half(factor[j]);
        out.bits[j] = half.bits;
        out.value[j] = half.value;
      }
    }
    return out;
  }

 private:
  Elements elements_;
  VT low_, high_, up_, down_;
};

/// Four bytes of a block from each of n vectors.
inline void store_words(const VI* words, int n, int lane, void* bytes) {
  for (int k = 0; k < n; ++k) {
    const int32_t word = words[k][lane];
    __builtin_memcpy(static_cast<uint8_t*>(bytes) + 4 * k, &word, 4);
  }
}

/// What most of these formats store: for each element its code in 4 bits, and the fifth bits apart.
struct PackedCodes {
  VI nibbles[4] = {};  ///< four bytes each
  VI fifths = {};

  explicit PackedCodes(const VI* codes) {
    for (int i = 0; i < 16; ++i) nibbles[i / 4] |= ((codes[i] & 15) | (codes[i + 16] & 15) << 4) << 8 * (i % 4);
    for (int i = 0; i < kN; ++i) fifths |= (codes[i] >> 4) << i;
  }
  void store_nibbles(int lane, uint8_t* qs) const { store_words(nibbles, 4, lane, qs); }
};

}  // namespace fathom::quant::FATHOM_ISA
