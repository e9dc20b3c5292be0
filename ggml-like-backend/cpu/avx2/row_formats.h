// From a stretch of a weight row, 8 blocks of 32 elements, to operands: what rows.h multiplies on AVX2 and AVX-VNNI.
// Everything is static: this header is compiled for one instruction set, in the namespace FATHOM_ISA.
#pragma once

#include "cpu/avx2/unpack.h"

namespace fathom::cpu::FATHOM_ISA {

static constexpr int kStretchBlocks = 8;

/// One row's stretch: vector j is block j, or (kHalvesApart) vectors 2 i and 2 i + 1 are the first and the second
/// halves of blocks 2 i and 2 i + 1; scales and minima with a lane for each block, two vectors where its halves have
/// their own.
template <typename Format> struct Stretch {
  __m256i u[kStretchBlocks];
  __m256 scale[32 / Format::kSub];
  __m256 min[32 / Format::kSub];
};

/// 16 numbers: those of first halves, those of second halves.
static inline void apart(const float* p, __m256* out) {
  const __m256 low = _mm256_load_ps(p), high = _mm256_load_ps(p + 8);
  const auto in_order = [](__m256 v) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8)); };
  out[0] = in_order(_mm256_shuffle_ps(low, high, 0x88));
  out[1] = in_order(_mm256_shuffle_ps(low, high, 0xdd));
}

/// Products of 32 bytes: sums of four as int32, without VNNI sums of two in 16 bits.
static inline __m256i multiply_bytes(__m256i u, __m256i q) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, q);
#else
  return _mm256_maddubs_epi16(u, q);
#endif
}

/// The half-precision numbers that eight blocks begin with.
template <typename Format> static inline __attribute__((always_inline)) __m256 eight_halves(const uint8_t* p) {
  const auto at = [&](int j) __attribute__((always_inline)) {
    uint16_t half;
    __builtin_memcpy(&half, p + j * Format::kBytes, sizeof(half));
    return half;
  };
  __m128i d = _mm_cvtsi32_si128(at(0));
  d = _mm_insert_epi16(d, at(1), 1), d = _mm_insert_epi16(d, at(2), 2), d = _mm_insert_epi16(d, at(3), 3);
  d = _mm_insert_epi16(d, at(4), 4), d = _mm_insert_epi16(d, at(5), 5), d = _mm_insert_epi16(d, at(6), 6);
  return _mm256_cvtph_ps(_mm_insert_epi16(d, at(7), 7));
}

/// What a format with unpacked stretches has to say of its products.
template <typename Format> struct UnpackedRow {
  static constexpr int kLargest = Format::kMaxU;  ///< what products have as a factor at most
  static constexpr bool kHalvesApart = false;
  static constexpr bool kAddsOffset = Format::kOffset != 0 && !kSignedWeights<Format>;
  /// Vector j of the stretch times 32 activations.
  static inline __attribute__((always_inline)) __m256i products(const Stretch<Format>& s, int j, const uint8_t* q) {
    if constexpr (kSignedWeights<Format>) {
      return multiply_bytes(_mm256_abs_epi8(s.u[j]), _mm256_sign_epi8(load32(q), s.u[j]));
    } else {
      return multiply_bytes(s.u[j], load32(q));
    }
  }
};

/// How a format's stretches are loaded, load(p, stretch), and multiplied, products(stretch, j, q); kColumns: up to so
/// many columns rows are faster than panels. Blocks of 256 elements: by their block decoder.
template <typename Format> struct RowFormat : UnpackedRow<Format> {
  static constexpr int kColumns = 1;

  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Format>& s) {
    constexpr int kScales = Format::kElements / Format::kSub, kCount = kStretchBlocks * 32 / Format::kElements;
    alignas(32) uint8_t u[kStretchBlocks * 32];
    alignas(32) float scale[kCount * kScales], min[kCount * kScales];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      decode(*reinterpret_cast<const typename Format::Block*>(p + i * Format::kBytes), u + i * Format::kElements,
             scale + i * kScales, min + i * kScales);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kStretchBlocks; ++j) s.u[j] = load32(u + 32 * j);
    if constexpr (Format::kSub == 32) {
      s.scale[0] = _mm256_load_ps(scale);
      if constexpr (Format::kHasMin) s.min[0] = _mm256_load_ps(min);
    } else {
      apart(scale, s.scale);
      if constexpr (Format::kHasMin) apart(min, s.min);
    }
  }
};

template <> struct RowFormat<Q8_0> : UnpackedRow<Q8_0> {
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q8_0>& s) {
    const auto* blocks = reinterpret_cast<const BlockQ8_0*>(p);
    const Bytes flip = splat8(kFullRangeOffset);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = bit_xor(load32(blocks[j].qs), flip);
    s.scale[0] = eight_halves<Q8_0>(p);
  }
};

/// Blocks of 16 bytes of nibbles, the low ones a block's first half and the high ones its second: two blocks to a
/// vector, which both are taken from at once. value(nibbles, pair, half) makes weights of them.
template <typename Format> struct NibbleRow : UnpackedRow<Format> {
  static constexpr bool kHalvesApart = true;
  static constexpr int kColumns = 1;

  template <typename Value>
  static inline __attribute__((always_inline)) void load_pairs(const uint8_t* qs, Stretch<Format>& s, Value&& value) {
    constexpr int kStride = Format::kElements == kSuperBlock ? 16 : Format::kBytes;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint8_t* first = qs + 2 * i * kStride;
      const Bytes packed = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(first)), load16(first + kStride), 1);
      s.u[2 * i] = value(low_nibbles(packed), i, 0);
      s.u[2 * i + 1] = value(high_nibbles(packed), i, 1);
    }
  }
  static inline __attribute__((always_inline)) void load_plain(const uint8_t* qs, Stretch<Format>& s) {
    load_pairs(qs, s, [](Bytes v, int, int) { return v; });
  }
  static inline __attribute__((always_inline)) void load_looked_up(const uint8_t* qs, const int8_t* values, int offset,
                                                                   Stretch<Format>& s) {
    const Bytes table = lookup_table(values, offset);
    load_pairs(qs, s, [&](Bytes v, int, int) { return look_up(table, v); });
  }
  /// With the fifth bits of Q5_0 and Q5_1, which lie four bytes before the nibbles.
  static inline __attribute__((always_inline)) void load_fives(const uint8_t* qs, Stretch<Format>& s) {
    const Bytes mask = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    load_pairs(qs, s, [&](Bytes v, int pair, int half) {
      const auto bits = [&](int j) { return _mm_set1_epi32(static_cast<int>(load_u32(qs + j * Format::kBytes - 4))); };
      const Bytes both = _mm256_set_m128i(bits(2 * pair + 1), bits(2 * pair));
      const __m128i from = _mm_set_epi64x(0x0101010101010101 + half * 0x0202020202020202, half * 0x0202020202020202);
      const Bytes spread = _mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(from));
      return or_masked(v, _mm256_cmpeq_epi8(bit_and(spread, mask), mask), splat8(0x10));
    });
  }
};

template <> struct RowFormat<Q4_0> : NibbleRow<Q4_0> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q4_0>& s) {
    load_plain(p + 2, s);
    s.scale[0] = eight_halves<Q4_0>(p);
  }
};

template <> struct RowFormat<Q4_1> : NibbleRow<Q4_1> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q4_1>& s) {
    load_plain(p + 4, s);
    s.scale[0] = eight_halves<Q4_1>(p);
    s.min[0] = eight_halves<Q4_1>(p + 2);
  }
};

template <> struct RowFormat<Q5_0> : NibbleRow<Q5_0> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q5_0>& s) {
    load_fives(p + 6, s);
    s.scale[0] = eight_halves<Q5_0>(p);
  }
};

template <> struct RowFormat<Q5_1> : NibbleRow<Q5_1> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q5_1>& s) {
    load_fives(p + 8, s);
    s.scale[0] = eight_halves<Q5_1>(p);
    s.min[0] = eight_halves<Q5_1>(p + 2);
  }
};

template <> struct RowFormat<IQ4_NL> : NibbleRow<IQ4_NL> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ4_NL>& s) {
    load_looked_up(p + 2, kIQ4Values, kFullRangeOffset, s);
    s.scale[0] = eight_halves<IQ4_NL>(p);
  }
};

template <> struct RowFormat<MXFP4> : NibbleRow<MXFP4> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<MXFP4>& s) {
    load_looked_up(p + 1, kE2M1Doubled, MXFP4::kOffset, s);
    const auto e = [&](int j) { return p[j * MXFP4::kBytes]; };
    s.scale[0] = mxfp4_scales(_mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7)));
  }
};

template <> struct RowFormat<IQ4_XS> : NibbleRow<IQ4_XS> {
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ4_XS>& s) {
    const auto& block = *reinterpret_cast<const BlockIQ4_XS*>(p);
    load_looked_up(block.qs, kIQ4Values, kFullRangeOffset, s);
    const Bytes low = _mm256_srlv_epi32(splat32(static_cast<int>(load_u32(block.scales_l))),
                                        _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const Bytes high = _mm256_srlv_epi32(splat32(block.scales_h << 4), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const Bytes six = or_masked(bit_and(low, splat32(15)), high, splat32(0x30));
    s.scale[0] = mul(to_floats(_mm256_sub_epi32(six, splat32(32))), splat(half_to_float(block.d)));
  }
};

template <> struct RowFormat<Q2_K> : UnpackedRow<Q2_K> {
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q2_K>& s) {
    const auto& block = *reinterpret_cast<const BlockQ2_K*>(p);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      s.u[j] = bit_and(shift_right16(load32(block.qs + j / 4 * 32), j % 4 * 2), splat8(3));
    }
    // A word for each block: scale and minimum of its first half, of its second half.
    const __m256i words = _mm256_cvtepu16_epi32(load16(block.scales)), four = splat32(15);
    const __m256 d = splat(half_to_float(block.d)), dmin = splat(-half_to_float(block.dmin));
    s.scale[0] = mul(to_floats(bit_and(words, four)), d);
    s.min[0] = mul(to_floats(bit_and(shift_right32(words, 4), four)), dmin);
    s.scale[1] = mul(to_floats(bit_and(shift_right32(words, 8), four)), d);
    s.min[1] = mul(to_floats(shift_right32(words, 12)), dmin);
  }
};

template <> struct RowFormat<Q3_K> : UnpackedRow<Q3_K> {
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q3_K>& s) {
    const auto& block = *reinterpret_cast<const BlockQ3_K*>(p);
    const __m256i mask = load32(block.hmask);  // bit j of these bytes belongs to block j
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m256i bit = j < 2 ? shift_left16(mask, 2 - j) : shift_right16(mask, j - 2);
      s.u[j] = or_masked(bit_and(shift_right16(load32(block.qs + j / 4 * 32), j % 4 * 2), splat8(3)), bit, splat8(4));
    }
    // The last 16 bytes: two of quants, twelve of scales, d. Low four bits of scale j: byte j % 8, nibble j / 8; upper
    // two: byte 8 + j % 4, pair j / 4.
    const __m128i tail = load16(p + 94);
    const __m128i nibbles = _mm_srlv_epi64(
        _mm_shuffle_epi8(tail, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9)), _mm_set_epi64x(4, 0));
    const __m128i pairs = _mm_srlv_epi32(_mm_shuffle_epi32(_mm_srli_si128(tail, 10), 0), _mm_setr_epi32(0, 2, 4, 6));
    const __m128i six = _mm_or_si128(_mm_and_si128(nibbles, _mm_set1_epi8(15)),
                                     _mm_and_si128(_mm_slli_epi32(pairs, 4), _mm_set1_epi8(0x30)));
    // A word for each block; each byte to the top, times d / 2^24.
    const __m256i words = _mm256_cvtepu16_epi32(_mm_sub_epi8(six, _mm_set1_epi8(32)));
    const __m256 d = splat(half_to_float(block.d) * 0x1p-24F);
    s.scale[0] = mul(to_floats(shift_left32(words, 24)), d);
    s.scale[1] = mul(to_floats(bit_and(shift_left32(words, 16), splat32(static_cast<int>(0xff000000)))), d);
  }
};

}  // namespace fathom::cpu::FATHOM_ISA
