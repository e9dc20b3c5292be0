// The IQ2, IQ3 and IQ1 formats as rows.h takes them: grid points looked up 32 at a time.
//
// Decoding these formats with a load for every point and every sign pattern gives 3 to 4 GB/s from a core. Here a grid
// is a table of 16-bit codes, which vpermi2w reads for 32 indices at once, 64 entries an instruction; vpmultishiftqb
// spreads their fields of two or three bits to bytes, and a byte shuffle makes those u = offset + or - magnitude.
#pragma once

#include "cpu/avx512/row_formats.h"
#include "cpu/grid_codes.h"

namespace fathom::cpu::avx512 {

/// table[i] for 32 indices i < kEntries.
template <int kEntries>
static inline __attribute__((always_inline)) __m512i codes_at(const uint16_t* table, __m512i i) {
  if constexpr (kEntries == 64) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(table), i, _mm512_load_si512(table + 32));
  } else {
    constexpr int kHalf = kEntries / 2;
    return _mm512_mask_blend_epi16(_mm512_test_epi16_mask(i, _mm512_set1_epi16(kHalf)), codes_at<kHalf>(table, i),
                                   codes_at<kHalf>(table + kHalf, i));
  }
}

/// offset + magnitude by number, offset - magnitude from entry 8 on.
static inline __m512i signed_values(const uint8_t* magnitudes, int n, int offset) {
  alignas(16) uint8_t both[16] = {};
  for (int i = 0; i < n; ++i) {
    both[i] = static_cast<uint8_t>(offset + magnitudes[i]);
    both[8 + i] = static_cast<uint8_t>(offset - magnitudes[i]);
  }
  return _mm512_broadcast_i32x4(load16(both));
}

/// Vector j of a stretch from 8 points of 8 elements, codes 8 (j % 4) .. of 32; negative where `minus` has a bit.
static inline __attribute__((always_inline)) __m512i spread_eights(__m512i codes, int j, __m512i values,
                                                                   __mmask64 minus) {
  const __m512i word = _mm512_add_epi16(_mm512_set1_epi64(8 * (j % 4)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  const __m512i fields =
      _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0e0c0a0806040200), _mm512_permutexvar_epi16(word, codes));
  const __m512i number = bit_and(fields, splat8(3));
  return look_up(values, _mm512_mask_add_epi8(number, minus, number, splat8(8)));
}

/// The same from 16 points of 4 elements, the lower or upper half of 32 codes.
static inline __attribute__((always_inline)) __m512i spread_fours(__m512i codes, int j, __m512i values,
                                                                  __mmask64 minus) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(j % 2 == 0 ? _mm512_castsi512_si256(codes) : _mm512_extracti64x4_epi64(codes, 1));
  const __m512i fields = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2926232009060300), wide);
  const __m512i number = bit_and(fields, splat8(7));
  return look_up(values, _mm512_mask_add_epi8(number, minus, number, splat8(8)));
}

/// Bits 0..6 of each byte, and bit 7 that makes their number even: kEvenSigns.
static inline __m512i with_parity(__m512i seven) {
  const __m512i odd =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m512i parity = bit_xor(look_up(odd, low_nibbles(seven)), look_up(odd, high_nibbles(seven)));
  return bit_or(seven, parity);
}

/// Sign bytes of 16 blocks from their words of four times seven bits.
static inline __m512i even_signs_of(__m512i words) {
  const __m512i fields = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e2720150e0700), words);
  return with_parity(bit_and(fields, splat8(127)));
}

static inline uint64_t load_u64(const void* p) {
  uint64_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}

/// Eight bytes of each of two blocks.
static inline __m128i two_eights(const void* low, const void* high) {
  return _mm_set_epi64x(static_cast<long long>(load_u64(high)), static_cast<long long>(load_u64(low)));
}

/// (0.5 + s) * d
static inline __m512 half_up(__m512i s, __m512 d) { return mul(_mm512_add_ps(splat(0.5F), to_floats(s)), d); }

/// Four-bit scales of IQ2_XS and IQ2_S: low nibbles of first halves, high ones of second halves.
static inline void load_nibble_scales(const void* low, const void* high, __m512 d, __m512* scale) {
  const __m512i bytes = _mm512_cvtepu8_epi32(two_eights(low, high));
  scale[0] = half_up(bit_and(bytes, splat32(15)), d);
  scale[1] = half_up(shift_right32(bytes, 4), d);
}

template <> struct RowFormat<IQ2_XXS> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XXS>& s) {
    const __m512i first = _mm512_loadu_si512(p + 2), second = _mm512_loadu_si512(p + IQ2_XXS::kBytes + 2);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i indices = _mm512_permutex2var_epi32(first, even, second);
    const __m512i words = _mm512_permutex2var_epi32(first, bit_or(even, splat32(1)), second);
    const __m512i codes[2] = {
        codes_at<256>(kGridCodes.iq2_xxs, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(indices))),
        codes_at<256>(kGridCodes.iq2_xxs, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(indices, 1)))};
    alignas(64) uint64_t minus[8];
    _mm512_store_si512(minus, even_signs_of(words));
    const __m512i values = signed_values(kGrid2Values, 3, IQ2_XXS::kOffset);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = spread_eights(codes[j / 4], j, values, minus[j]);
    s.scale[0] = half_up(shift_right32(words, 28), mul(two_halves(p, p + IQ2_XXS::kBytes), splat(0.25F)));
  }
};

template <> struct RowFormat<IQ2_XS> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XS>& s) {
    const __m512i first = _mm512_loadu_si512(p + 2), second = _mm512_loadu_si512(p + IQ2_XS::kBytes + 2);
    const __m512i index = _mm512_set1_epi16(511);
    const __m512i codes[2] = {codes_at<512>(kGridCodes.iq2_xs, bit_and(first, index)),
                              codes_at<512>(kGridCodes.iq2_xs, bit_and(second, index))};
    alignas(64) uint64_t minus[8];
    _mm512_store_si512(minus, with_parity(join(_mm512_cvtepi16_epi8(shift_right16(first, 9)),
                                               _mm512_cvtepi16_epi8(shift_right16(second, 9)))));
    const __m512i values = signed_values(kGrid2Values, 3, IQ2_XS::kOffset);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = spread_eights(codes[j / 4], j, values, minus[j]);
    load_nibble_scales(p + 66, p + IQ2_XS::kBytes + 66, mul(two_halves(p, p + IQ2_XS::kBytes), splat(0.25F)), s.scale);
  }
};

template <> struct RowFormat<IQ2_S> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_S>& s) {
    const __m512i values = signed_values(kGrid2Values, 3, IQ2_S::kOffset);
    // Bits 2l.. of a block's byte become bits 8 and 9 of index l.
    const __m512i shift = _mm512_set1_epi64(0x0002000400060008);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint8_t* block = p + i * IQ2_S::kBytes;
      const __m512i bytes = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<long long>(load_u64(block + 66))));
      const __m512i high =
          _mm512_shuffle_epi8(bytes, _mm512_set4_epi32(static_cast<int>(0x80088008), static_cast<int>(0x80088008),
                                                       static_cast<int>(0x80008000), static_cast<int>(0x80008000)));
      const __m512i index =
          or_masked(_mm512_cvtepu8_epi16(load32(block + 2)), _mm512_sllv_epi16(high, shift), _mm512_set1_epi16(0x300));
      const __m512i codes = codes_at<1024>(kGridCodes.iq2_s, index);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s.u[4 * i + j] = spread_eights(codes, j, values, load_u64(block + 34 + 8 * j));
    }
    load_nibble_scales(p + 74, p + IQ2_S::kBytes + 74, mul(two_halves(p, p + IQ2_S::kBytes), splat(0.25F)), s.scale);
  }
};

template <> struct RowFormat<IQ3_XXS> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_XXS>& s) {
    const __m512i words = join(load32(p + 66), load32(p + IQ3_XXS::kBytes + 66));
    alignas(64) uint64_t minus[8];
    _mm512_store_si512(minus, even_signs_of(words));
    const __m512i values = signed_values(kGrid3XXSValues, 8, IQ3_XXS::kOffset);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i index = _mm512_cvtepu8_epi16(load32(p + i / 2 * IQ3_XXS::kBytes + 2 + 32 * (i % 2)));
      const __m512i codes = codes_at<256>(kGridCodes.iq3_xxs, index);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) s.u[2 * i + j] = spread_fours(codes, j, values, minus[2 * i + j]);
    }
    s.scale[0] = half_up(shift_right32(words, 28), mul(two_halves(p, p + IQ3_XXS::kBytes), splat(0.5F)));
  }
};

template <> struct RowFormat<IQ3_S> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_S>& s) {
    constexpr uint8_t kOdd[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    const __m512i values = signed_values(kOdd, 8, IQ3_S::kOffset);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint8_t* block = p + i / 2 * IQ3_S::kBytes;
      const int part = i % 2;
      const __m512i low = _mm512_cvtepu8_epi16(load32(block + 2 + 32 * part));
      const __m512i index = _mm512_mask_add_epi16(low, load_u32(block + 66 + 4 * part), low, _mm512_set1_epi16(256));
      const __m512i codes = codes_at<512>(kGridCodes.iq3_s, index);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        s.u[2 * i + j] = spread_fours(codes, j, values, load_u64(block + 74 + 16 * part + 8 * j));
      }
    }
    // Nibble b of a block's four bytes to lane b.
    const __m512i nibble = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i both = _mm512_mask_mov_epi32(_mm512_set1_epi32(static_cast<int>(load_u32(p + 106))), 0xff00,
                                               _mm512_set1_epi32(static_cast<int>(load_u32(p + IQ3_S::kBytes + 106))));
    const __m512i four = bit_and(_mm512_srlv_epi32(both, nibble), splat32(15));
    s.scale[0] = mul(to_floats(_mm512_add_epi32(shift_left32(four, 1), splat32(1))), two_halves(p, p + IQ3_S::kBytes));
  }
};

/// Vector j of a stretch of IQ1: the grid's bytes at 64 indices. Its 2048 points do not fit registers, and single loads
/// are faster than a gather.
static inline __attribute__((always_inline)) __m512i ternary_points(const uint16_t* index, int j) {
  const auto at = [&](int i) { return kIQ1SGrid[index[8 * j + i]]; };
  return join(four_words(at(0), at(1), at(2), at(3)), four_words(at(4), at(5), at(6), at(7)));
}
/// u = 8 * grid + delta
static inline __m512i ternary_u(__m512i grid, __m512i delta) {
  return _mm512_add_epi8(bit_and(shift_left16(grid, 3), splat8(static_cast<int>(0xf8))), delta);
}
/// (2 s + 1) * d
static inline __m512 odd_times(__m512i s, __m512 d) {
  return mul(to_floats(_mm512_add_epi32(shift_left32(s, 1), splat32(1))), d);
}

template <> struct RowFormat<IQ1_S> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_S>& s) {
    const __m128i heads[2] = {load16(p + 34), load16(p + IQ1_S::kBytes + 34)};
    alignas(64) uint16_t index[64];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      // A block's word in four lanes: bits 3l.. to bits 8.. of lane l.
      const __m512i fourfold = _mm512_cvtepu8_epi16(_mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4,
                                                                     4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7));
      const __m512i word = _mm512_permutexvar_epi16(fourfold, _mm512_castsi128_si512(heads[i]));
      const __m512i high = _mm512_srlv_epi16(_mm512_sllv_epi16(word, _mm512_set1_epi64(0x0000000200050008)),
                                             _mm512_set1_epi64(0x0001000000000000));
      _mm512_store_si512(index + 32 * i, or_masked(_mm512_cvtepu8_epi16(load32(p + i * IQ1_S::kBytes + 2)), high,
                                                   _mm512_set1_epi16(0x700)));
    }
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(heads[0]), heads[1], 1));
    s.scale[0] =
        odd_times(bit_and(shift_right32(wide, 12), splat32(7)), mul(two_halves(p, p + IQ1_S::kBytes), splat(0.125F)));
    const __m512i delta = _mm512_mask_mov_epi32(
        splat8(IQ1_S::kOffset + 1), _mm512_test_epi32_mask(wide, splat32(0x8000)), splat8(IQ1_S::kOffset - 1));
    const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      s.u[j] =
          ternary_u(ternary_points(index, j), _mm512_permutexvar_epi32(_mm512_add_epi32(first, splat32(2 * j)), delta));
    }
  }
};

/// d of IQ1_M lies in the top nibbles of its four words of scales.
static inline uint16_t iq1_m_d(uint64_t words) {
  return static_cast<uint16_t>((words >> 12 & 0xf) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) |
                               (words >> 48 & 0xf000));
}

template <> struct RowFormat<IQ1_M> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_M>& s) {
    alignas(64) uint16_t index[64];
    const __m128i low = _mm_set1_epi8(15);
    const __m512i plus = splat8(IQ1_M::kOffset + 1), minus = splat8(IQ1_M::kOffset - 1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint8_t* block = p + i * IQ1_M::kBytes;
      const __m128i bytes = load16(block + 32);
      const __m128i even = _mm_and_si128(bytes, low), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
      const __m512i nibbles = _mm512_cvtepu8_epi16(_mm256_inserti128_si256(
          _mm256_castsi128_si256(_mm_unpacklo_epi8(even, odd)), _mm_unpackhi_epi8(even, odd), 1));  // one a group of 8
      _mm512_store_si512(index + 32 * i, or_masked(_mm512_cvtepu8_epi16(load32(block)), shift_left16(nibbles, 8),
                                                   _mm512_set1_epi16(0x700)));
      const __mmask32 down = _mm512_test_epi16_mask(nibbles, _mm512_set1_epi16(8));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        s.u[4 * i + j] = ternary_u(ternary_points(index, 4 * i + j),
                                   _mm512_mask_mov_epi64(plus, static_cast<__mmask8>(down >> (8 * j)), minus));
      }
    }
    const uint16_t d[2] = {iq1_m_d(load_u64(p + 48)), iq1_m_d(load_u64(p + IQ1_M::kBytes + 48))};
    const __m512 small = mul(two_halves(d, d + 1), splat(0.125F));
    // Four blocks' scales lie in two words: six bits each, three a half.
    const __m512i words = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                                   _mm512_castsi128_si512(two_eights(p + 48, p + IQ1_M::kBytes + 48)));
    const __m512i at = _mm512_setr_epi32(0, 6, 16, 22, 0, 6, 16, 22, 0, 6, 16, 22, 0, 6, 16, 22);
    const __m512i six = _mm512_srlv_epi32(words, at);
    s.scale[0] = odd_times(bit_and(six, splat32(7)), small);
    s.scale[1] = odd_times(bit_and(shift_right32(six, 3), splat32(7)), small);
  }
};

/// Panels of these formats, for many columns: a row's stretch is a panel's chunk.
template <typename Format>
static inline void unpack_stretches(const uint8_t* const* rows, int64_t offset, Panel& panel, Prefetcher& ahead) {
  constexpr int kHalves = 32 / Format::kSub, kPart = kUnpackLines<Format> * 2 / kRows + 1;
  alignas(64) uint8_t u[kRows][kChunk];
  alignas(64) float scale[kHalves][kRows][kRows];
  const uint8_t* starts[kRows];
  for (int i = 0; i < kRows; ++i) {
    ahead.lines<kPart>();
    Stretch<Format> s;
    RowFormat<Format>::load(rows[i] + offset, s);
    starts[i] = u[i];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store(u[i] + 64 * j, s.u[j]);
    for (int h = 0; h < kHalves; ++h) store(scale[h][i], s.scale[h]);
  }
  for (int block = 0; block < kStretchBlocks; ++block) {
    Bytes out[8];
    transpose32(starts, 32 * block, out);
    store_groups(panel.u + 8 * block, out);
    for (int h = 0; h < kHalves; ++h) {
      for (int i = 0; i < kRows; ++i) panel.scale[block * kHalves + h][i] = scale[h][i][block];
    }
  }
}

#define FATHOM_UNPACK_STRETCHES(Format)                                                                     \
  static inline void unpack(Format format, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, \
                            Prefetcher& ahead) {                                                            \
    if (n == kChunk / Format::kElements) return unpack_stretches<Format>(rows, offset, panel, ahead);       \
    unpack<Format>(format, rows, offset, n, panel, ahead);                                                  \
  }
FATHOM_UNPACK_STRETCHES(IQ2_XXS)
FATHOM_UNPACK_STRETCHES(IQ2_XS)
FATHOM_UNPACK_STRETCHES(IQ2_S)
FATHOM_UNPACK_STRETCHES(IQ3_XXS)
FATHOM_UNPACK_STRETCHES(IQ3_S)
FATHOM_UNPACK_STRETCHES(IQ1_S)
FATHOM_UNPACK_STRETCHES(IQ1_M)
#undef FATHOM_UNPACK_STRETCHES

}  // namespace fathom::cpu::avx512
