// The IQ2, IQ3 and IQ1 formats as rows.h takes them on AVX2 and AVX-VNNI: every grid point is a load of its own, and
// its index is computed in general registers, which are idle; signs and scales, for a block of 256 elements at once.
//
// These stretches are not unpacked: 32 elements are put together where they are multiplied, in few registers. Weights
// of IQ2 and IQ3 are magnitudes there, and their signs go to the activations. Everything is static: this header is
// compiled for one instruction set, in the namespace FATHOM_ISA.
#pragma once

#include "cpu/avx2/row_formats.h"
#include "cpu/grid_codes.h"

namespace fathom::cpu::FATHOM_ISA {

/// A block, and its scales as the other formats have them.
template <typename Block, int kScales> struct BlockAndScales {
  const Block* block;
  __m256 scale[kScales];
};
/// A byte of signs for eight elements: the block's, or made of what it has instead.
struct SignBytes {
  alignas(32) uint8_t own_signs[32];
  const uint8_t* signs;
};

static inline __m128i load8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

/// Four points of eight elements; address(i) is where point i lies.
template <typename Address> static inline __attribute__((always_inline)) __m256i four_eights(Address&& address) {
  const auto pair = [&](int i) __attribute__((always_inline)) {
    const __m128 low = _mm_castsi128_ps(load8(address(i)));
    return _mm_castps_si128(_mm_loadh_pi(low, reinterpret_cast<const __m64*>(address(i + 1))));
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(pair(0)), pair(2), 1);
}
/// Eight points of four elements.
template <typename Address> static inline __attribute__((always_inline)) __m256i eight_fours(Address&& address) {
  const auto at = [&](int i) { return static_cast<int>(load_u32(address(i))); };
  return _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
}
/// A byte of four to eight bytes each.
static inline __m256i eightfold(uint32_t bytes) {
  const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  return _mm256_shuffle_epi8(splat32(static_cast<int>(bytes)), from);
}
/// Activations with the signs of 32 weights.
static inline __m256i signed_by(__m256i q, const uint8_t* signs) {
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i minus = _mm256_cmpeq_epi8(bit_and(eightfold(load_u32(signs)), bit), bit);
  return _mm256_sign_epi8(q, bit_or(minus, splat8(1)));
}

/// Bits 0..6 of each byte, and bit 7 that makes their number even: kEvenSigns.
static inline __m256i with_parity(__m256i sevens) {
  const __m256i odd = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  return bit_or(sevens, bit_xor(look_up(odd, low_nibbles(sevens)), look_up(odd, high_nibbles(sevens))));
}
/// Sign bytes of eight words of four times seven bits.
static inline __m256i even_signs_of(__m256i words) {
  const auto field = [&](int l) { return bit_and(shift_left32(words, l), splat32(0x7f << (8 * l))); };
  return with_parity(bit_or(bit_or(field(0), field(1)), bit_or(field(2), field(3))));
}

/// (0.5 + s) * d
static inline __m256 half_up(__m256i s, float d) { return mul(_mm256_add_ps(splat(0.5F), to_floats(s)), splat(d)); }
/// (1 + 2 s) * d
static inline __m256 odd_times(__m256i s, float d) {
  return mul(to_floats(bit_or(_mm256_add_epi32(s, s), splat32(1))), splat(d));
}

/// Magnitudes, whose products need no offset.
template <int kLargestMagnitude> struct SignedRow {
  static constexpr int kColumns = 1;
  static constexpr int kLargest = kLargestMagnitude;
  static constexpr bool kHalvesApart = false;
  static constexpr bool kAddsOffset = false;
};

template <> struct Stretch<IQ2_XXS> : BlockAndScales<BlockIQ2_XXS, 1>, SignBytes {};
template <> struct RowFormat<IQ2_XXS> : SignedRow<43> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XXS>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ2_XXS*>(p);
    s.block = &block;
    const __m256 a = _mm256_castsi256_ps(load32(block.qs)), b = _mm256_castsi256_ps(load32(block.qs + 16));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
    store(s.own_signs, even_signs_of(words));
    s.signs = s.own_signs;
    s.scale[0] = half_up(shift_right32(words, 28), half_to_float(block.d) * 0.25F);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ2_XXS>& s, int j, const uint8_t* q) {
    uint32_t index;
    __builtin_memcpy(&index, &s.block->qs[4 * j], sizeof(index));
    const auto at = [&](int i) { return &kIQ2XXSGrid[index >> (8 * i) & 255]; };
    return multiply_bytes(four_eights(at), signed_by(load32(q), s.signs + 4 * j));
  }
};

/// Four-bit scales of IQ2_XS and IQ2_S: low nibbles of first halves, high ones of second halves.
static inline void nibble_scales(const uint8_t* scales, float d, __m256* scale) {
  const __m256i bytes = _mm256_cvtepu8_epi32(load8(scales));
  scale[0] = half_up(bit_and(bytes, splat32(15)), d);
  scale[1] = half_up(shift_right32(bytes, 4), d);
}

template <> struct Stretch<IQ2_XS> : BlockAndScales<BlockIQ2_XS, 2>, SignBytes {};
template <> struct RowFormat<IQ2_XS> : SignedRow<43> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XS>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ2_XS*>(p);
    s.block = &block;
    const __m256i a = load32(block.qs), b = load32(block.qs + 16);
    const __m256i sevens = _mm256_packus_epi16(shift_right16(a, 9), shift_right16(b, 9));
    store(s.own_signs, with_parity(_mm256_permute4x64_epi64(sevens, 0xd8)));
    s.signs = s.own_signs;
    nibble_scales(block.scales, half_to_float(block.d) * 0.25F, s.scale);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ2_XS>& s, int j, const uint8_t* q) {
    const auto at = [&](int i) { return &kIQ2XSGrid[s.block->qs[4 * j + i] & 511]; };
    return multiply_bytes(four_eights(at), signed_by(load32(q), s.signs + 4 * j));
  }
};

template <> struct Stretch<IQ2_S> : BlockAndScales<BlockIQ2_S, 2>, SignBytes {};
template <> struct RowFormat<IQ2_S> : SignedRow<43> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_S>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ2_S*>(p);
    s.block = &block;
    s.signs = block.signs;
    nibble_scales(block.scales, half_to_float(block.d) * 0.25F, s.scale);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ2_S>& s, int j, const uint8_t* q) {
    const uint32_t high = s.block->qh[j];
    const auto at = [&](int i) { return &kIQ2SGrid[s.block->qs[4 * j + i] | (high << (8 - 2 * i) & 0x300)]; };
    return multiply_bytes(four_eights(at), signed_by(load32(q), s.signs + 4 * j));
  }
};

template <> struct Stretch<IQ3_XXS> : BlockAndScales<BlockIQ3_XXS, 1>, SignBytes {};
template <> struct RowFormat<IQ3_XXS> : SignedRow<62> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_XXS>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ3_XXS*>(p);
    s.block = &block;
    const __m256i words = load32(block.signs_scale);
    store(s.own_signs, even_signs_of(words));
    s.signs = s.own_signs;
    s.scale[0] = half_up(shift_right32(words, 28), half_to_float(block.d) * 0.5F);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ3_XXS>& s, int j, const uint8_t* q) {
    const auto at = [&](int i) { return &kIQ3XXSGrid[s.block->qs[8 * j + i]]; };
    return multiply_bytes(eight_fours(at), signed_by(load32(q), s.signs + 4 * j));
  }
};

template <> struct Stretch<IQ3_S> : BlockAndScales<BlockIQ3_S, 1>, SignBytes {};
template <> struct RowFormat<IQ3_S> : SignedRow<15> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_S>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ3_S*>(p);
    s.block = &block;
    s.signs = block.signs;
    const __m256i nibbles = _mm256_srlv_epi32(splat32(static_cast<int>(load_u32(block.scales))),
                                              _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    s.scale[0] = odd_times(bit_and(nibbles, splat32(15)), half_to_float(block.d));
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ3_S>& s, int j, const uint8_t* q) {
    const uint32_t high = s.block->qh[j];
    const auto at = [&](int i) { return &kIQ3SGrid[s.block->qs[8 * j + i] | (high << (8 - i) & 0x100)]; };
    return multiply_bytes(eight_fours(at), signed_by(load32(q), s.signs + 4 * j));
  }
};

/// u = 8 * (element + 1) + delta + 1: the sum of two numbers without common bits.
template <typename Format> struct TernaryRow {
  static constexpr int kColumns = 1;
  static constexpr int kLargest = Format::kMaxU;
  static constexpr bool kHalvesApart = false;
  static constexpr bool kAddsOffset = true;
};

/// Two or zero in eight bytes for each point.
template <> struct Stretch<IQ1_S> : BlockAndScales<BlockIQ1_S, 1> { alignas(32) uint32_t delta[8]; };
template <> struct RowFormat<IQ1_S> : TernaryRow<IQ1_S> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_S>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ1_S*>(p);
    s.block = &block;
    // A word for four points: the scale at bit 12, the sign of delta in bit 15.
    const __m256i wide = _mm256_cvtepu16_epi32(load16(block.qh));
    const __m256i plus = _mm256_cmpgt_epi32(splat32(0x8000), wide);
    _mm256_store_si256(reinterpret_cast<__m256i*>(s.delta), bit_and(plus, splat8(2)));
    s.scale[0] = odd_times(bit_and(shift_right32(wide, 12), splat32(7)), half_to_float(block.d) * 0.125F);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ1_S>& s, int j, const uint8_t* q) {
    const uint32_t high = uint32_t{s.block->qh[j]} << 8;
    const auto at = [&](int i) { return &kGridCodes.iq1_points[s.block->qs[4 * j + i] | (high >> (3 * i) & 0x700)]; };
    return multiply_bytes(bit_or(four_eights(at), splat32(static_cast<int>(s.delta[j]))), load32(q));
  }
};

template <> struct Stretch<IQ1_M> : BlockAndScales<BlockIQ1_M, 2> { alignas(32) uint8_t delta[32]; };
template <> struct RowFormat<IQ1_M> : TernaryRow<IQ1_M> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_M>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ1_M*>(p);
    s.block = &block;
    // A nibble for each point: three bits of its index, the sign of its delta.
    const __m128i bytes = load16(block.qh), low = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(bytes, low), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
#pragma GCC unroll 2
    for (int t = 0; t < 2; ++t) {
      const __m128i nibbles = t == 0 ? _mm_unpacklo_epi8(even, odd) : _mm_unpackhi_epi8(even, odd);
      const __m128i eight = _mm_set1_epi8(8);
      _mm_store_si128(reinterpret_cast<__m128i*>(s.delta + 16 * t),
                      _mm_srli_epi16(_mm_andnot_si128(nibbles, eight), 2));
    }
    uint16_t w[4];
    __builtin_memcpy(w, block.scales, sizeof(w));
    const auto d = static_cast<uint16_t>(w[0] >> 12 | (w[1] >> 8 & 0xf0) | (w[2] >> 4 & 0xf00) | (w[3] & 0xf000));
    const float small = half_to_float(d) * 0.125F;
    // A word for two blocks: six bits each, three a half.
    const __m256i words = _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(load8(block.scales), load8(block.scales)));
    const __m256i six = _mm256_srlv_epi32(words, _mm256_setr_epi32(0, 6, 0, 6, 0, 6, 0, 6));
    s.scale[0] = odd_times(bit_and(six, splat32(7)), small);
    s.scale[1] = odd_times(bit_and(shift_right32(six, 3), splat32(7)), small);
  }
  static inline __attribute__((always_inline)) __m256i products(const Stretch<IQ1_M>& s, int j, const uint8_t* q) {
    uint16_t nibbles;
    __builtin_memcpy(&nibbles, &s.block->qh[2 * j], sizeof(nibbles));
    const uint32_t high = uint32_t{nibbles} << 8;
    const auto at = [&](int i) { return &kGridCodes.iq1_points[s.block->qs[4 * j + i] | (high >> (4 * i) & 0x700)]; };
    return multiply_bytes(bit_or(four_eights(at), eightfold(load_u32(s.delta + 4 * j))), load32(q));
  }
};

}  // namespace fathom::cpu::FATHOM_ISA
