// The IQ2, IQ3 and IQ1 formats as rows.h takes them: grid points looked up 64 at a time.
//
// A load for every point and every sign pattern gives 3 to 5 GB/s from a core. Here a grid is two tables of bytes,
// which vpermi2b reads for 64 indices at once, 128 entries an instruction; each byte holds numbers of a few bits. Sign
// bits are put beside them, and vpermb, which sees six bits of a byte, makes an element u = offset + or - magnitude of
// number and sign. Points lie side by side, so that a vector has one element of many of them: Order::kAcross...
#pragma once

#include "cpu/avx512/row_formats.h"
#include "cpu/grid_codes.h"

namespace fathom::cpu::avx512 {

static inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }

/// table[i] for 64 indices i: their bits 0..6 in `low`, a mask for each further one.
template <int kEntries>
static inline __attribute__((always_inline)) __m512i bytes_at(const uint8_t* table, __m512i low,
                                                              const __mmask64* bits) {
  if constexpr (kEntries == 128) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), low, _mm512_load_si512(table + 64));
  } else {
    constexpr int kHalf = kEntries / 2, kBit = kHalf == 128 ? 0 : kHalf == 256 ? 1 : kHalf == 512 ? 2 : 3;
    return _mm512_mask_blend_epi8(bits[kBit], bytes_at<kHalf>(table, low, bits),
                                  bytes_at<kHalf>(table + kHalf, low, bits));
  }
}

struct alignas(64) Table64 {
  uint8_t at[64];
};
/// What six bits make of element e of a point (or of half a point of eight): its number's bits at `places`, lowest
/// first, its sign at bit `sign`.
template <size_t kValues, size_t kBits>
static constexpr Table64 signed_values(const uint8_t (&values)[kValues], int offset, const uint8_t (&places)[kBits],
                                       int sign) {
  Table64 table{};
  for (int i = 0; i < 64; ++i) {
    int number = 0;
    for (size_t bit = 0; bit < kBits; ++bit) number |= (i >> places[bit] & 1) << bit;
    table.at[i] = static_cast<uint8_t>((i >> sign & 1) != 0 ? offset - values[number] : offset + values[number]);
  }
  return table;
}
static inline __m512i looked_up(const Table64& table, __m512i index) {
  return _mm512_permutexvar_epi8(index, _mm512_load_si512(table.at));
}

/// a, with b's bits where the mask has them.
static inline __m512i with_bits(__m512i a, __m512i b, int mask) {
  return _mm512_ternarylogic_epi32(splat8(mask), b, a, 0xca);
}
/// Bytes of a and b in turns, of the low or the high half of each 128-bit quarter.
static inline __m512i interleave(int v, __m512i a, __m512i b) {
  return v == 0 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
}

/// Where spread_eights expects the sign bits of a point's elements in its byte: elements 0 and 1 at bits 4 and 5, 2 and
/// 3 at bits 0 and 1; of elements 4..7 each two bits higher. Made of the eight bits in order by a product of matrices
/// of bits (row 0 is the top byte), and of seven bits whose last one makes their number even, kEvenSigns.
static constexpr int64_t kSignPlaces = 0x0408408001021020, kEvenSignPlaces = 0x0408407f01021020;
static inline __m512i times_matrix(__m512i bytes, int64_t matrix) {
  return _mm512_gf2p8affine_epi64_epi8(bytes, _mm512_set1_epi64(matrix), 0);
}

/// A stretch of 64 points of eight elements: numbers of elements 0..3, of 4..7, and signs.
static inline __attribute__((always_inline)) void spread_eights(__m512i low, __m512i high, __m512i signs, __m512i* u) {
  static constexpr uint8_t kPlaces[3][2] = {{0, 1}, {2, 3}, {4, 5}};
  static constexpr Table64 kTables[4] = {signed_values(kGrid2Values, IQ2_XXS::kOffset, kPlaces[0], 4),
                                         signed_values(kGrid2Values, IQ2_XXS::kOffset, kPlaces[1], 5),
                                         signed_values(kGrid2Values, IQ2_XXS::kOffset, kPlaces[1], 0),
                                         signed_values(kGrid2Values, IQ2_XXS::kOffset, kPlaces[2], 1)};
  const __m512i high_signs = shift_right16(signs, 2);
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v, u += 4) {
    const __m512i numbers = interleave(v, low, high), s = interleave(v, signs, high_signs);
    const __m512i first = with_bits(numbers, s, 0x30), second = with_bits(shift_right16(numbers, 2), s, 0x03);
    u[0] = looked_up(kTables[0], first), u[1] = looked_up(kTables[1], first);
    u[2] = looked_up(kTables[2], second), u[3] = looked_up(kTables[3], second);
  }
}

struct Tables3 {
  Table64 of[4];
};
static constexpr Tables3 tables_of_threes(const uint8_t (&values)[8], int offset) {
  return {signed_values(values, offset, kPlaces3[0], 0), signed_values(values, offset, kPlaces3[1], 1),
          signed_values(values, offset, kPlaces3[2], 2), signed_values(values, offset, kPlaces3[3], 3)};
}
/// Half a stretch, 64 points of four elements: numbers of elements 0 and 1, of 2 and 3; signs in bits 0..3.
static inline __attribute__((always_inline)) void spread_fours(const Tables3& tables, __m512i low, __m512i high,
                                                               __m512i signs, __m512i* u) {
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) u[e] = looked_up(tables.of[e], with_bits(e < 2 ? low : high, signs, 1 << e));
}

/// 32 bytes of each of two blocks.
static inline __m512i two_of(const void* low, const void* high) { return join(load32(low), load32(high)); }
/// The same by turns of eight, so that the low halves of 128-bit quarters are the first block's.
static inline __m512i by_turns(const void* low, const void* high) {
  return _mm512_permutex2var_epi64(_mm512_castsi256_si512(load32(low)), _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                                   _mm512_castsi256_si512(load32(high)));
}
/// Sixteen bytes of each of two blocks.
static inline __m256i two_sixteens(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(low)), load16(high), 1);
}
static inline uint64_t load_u64(const void* p) {
  uint64_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}
/// Eight bytes of each.
static inline __m128i two_eights(const void* low, const void* high) {
  return _mm_set_epi64x(static_cast<long long>(load_u64(high)), static_cast<long long>(load_u64(low)));
}

/// The seven-bit fields of words of four, each in a byte; bit 7 is a rest.
static inline __m512i sevens_of(__m512i words) {
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e2720150e0700), words);
}

/// factor * (s + 0.5) for four bits s, and factor * (2 s + 1) for three: what scales are before they are multiplied by
/// d.
static inline __m512 halves_up(__m512i s, float factor) {
  const __m512 steps = _mm512_setr_ps(0.5F, 1.5F, 2.5F, 3.5F, 4.5F, 5.5F, 6.5F, 7.5F, 8.5F, 9.5F, 10.5F, 11.5F, 12.5F,
                                      13.5F, 14.5F, 15.5F);
  return _mm512_permutexvar_ps(s, mul(steps, splat(factor)));
}
static inline __m512 eighths_of_odds(__m512i s) {
  return _mm512_permutexvar_ps(s, _mm512_setr_ps(0.125F, 0.375F, 0.625F, 0.875F, 1.125F, 1.375F, 1.625F, 1.875F, 0.125F,
                                                 0.375F, 0.625F, 0.875F, 1.125F, 1.375F, 1.625F, 1.875F));
}

/// Four-bit scales of IQ2_XS and IQ2_S: low nibbles of first halves, high ones of second halves.
static inline void load_nibble_scales(const void* low, const void* high, __m512 d, __m512* scale) {
  const __m512i bytes = _mm512_cvtepu8_epi32(two_eights(low, high));
  scale[0] = mul(halves_up(bytes, 0.25F), d);
  scale[1] = mul(halves_up(shift_right32(bytes, 4), 0.25F), d);
}

template <> struct RowFormat<IQ2_XXS> {
  static constexpr Order kOrder = Order::kAcrossFours;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XXS>& s) {
    const uint8_t* next = p + IQ2_XXS::kBytes;
    const __m512i first = load64(p + 2), second = load64(next + 2);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i index = _mm512_permutex2var_epi32(first, even, second);
    const __m512i words = _mm512_permutex2var_epi32(first, bit_or(even, splat32(1)), second);
    const __mmask64 bits[] = {_mm512_movepi8_mask(index)};
    spread_eights(bytes_at<256>(kGridCodes.iq2_xxs[0], index, bits), bytes_at<256>(kGridCodes.iq2_xxs[1], index, bits),
                  times_matrix(sevens_of(words), kEvenSignPlaces), s.u);
    s.scale[0] = mul(halves_up(shift_right32(words, 28), 0.25F), two_halves(p, next));
  }
};

template <> struct RowFormat<IQ2_XS> {
  static constexpr Order kOrder = Order::kAcrossFours;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_XS>& s) {
    const uint8_t* next = p + IQ2_XS::kBytes;
    // Words: low bytes, and bytes of the index' bit 8 and seven bits of signs.
    static constexpr Table64 kEven = [] {
      Table64 table{};
      for (int i = 0; i < 64; ++i) table.at[i] = static_cast<uint8_t>(2 * i);
      return table;
    }();
    const __m512i first = load64(p + 2), second = load64(next + 2), even = _mm512_load_si512(kEven.at);
    const __m512i low = _mm512_permutex2var_epi8(first, even, second);
    const __m512i high = _mm512_permutex2var_epi8(first, bit_or(even, splat8(1)), second);
    const __mmask64 bits[] = {_mm512_movepi8_mask(low), _mm512_test_epi8_mask(high, splat8(1))};
    spread_eights(bytes_at<512>(kGridCodes.iq2_xs[0], low, bits), bytes_at<512>(kGridCodes.iq2_xs[1], low, bits),
                  times_matrix(high, kEvenSignPlaces << 1), s.u);
    load_nibble_scales(p + 66, next + 66, two_halves(p, next), s.scale);
  }
};

template <> struct RowFormat<IQ2_S> {
  static constexpr Order kOrder = Order::kAcrossFours;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ2_S>& s) {
    const uint8_t* next = p + IQ2_S::kBytes;
    const __m512i low = two_of(p + 2, next + 2);
    // Two bits for each point: to every point its byte of four.
    static constexpr Table64 kFourfold = [] {
      Table64 table{};
      for (int i = 0; i < 64; ++i) table.at[i] = static_cast<uint8_t>(i / 4);
      return table;
    }();
    const __m512i high =
        _mm512_permutexvar_epi8(_mm512_load_si512(kFourfold.at), _mm512_castsi128_si512(two_eights(p + 66, next + 66)));
    const __mmask64 bits[] = {_mm512_movepi8_mask(low), _mm512_test_epi8_mask(high, splat32(0x40100401)),
                              _mm512_test_epi8_mask(high, splat32(static_cast<int>(0x80200802)))};
    spread_eights(bytes_at<1024>(kGridCodes.iq2_s[0], low, bits), bytes_at<1024>(kGridCodes.iq2_s[1], low, bits),
                  times_matrix(two_of(p + 34, next + 34), kSignPlaces), s.u);
    load_nibble_scales(p + 74, next + 74, two_halves(p, next), s.scale);
  }
};

template <> struct RowFormat<IQ3_XXS> {
  static constexpr Order kOrder = Order::kAcrossTwos;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_XXS>& s) {
    static constexpr Tables3 kTables = tables_of_threes(kGrid3XXSValues, IQ3_XXS::kOffset);
    const uint8_t* next = p + IQ3_XXS::kBytes;
    const __m512i signs = times_matrix(sevens_of(by_turns(p + 66, next + 66)), 0x010204081020407f);
    const __m512i high_signs = shift_right16(signs, 4);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512i index = load64((v == 0 ? p : next) + 2);
      const __mmask64 bits[] = {_mm512_movepi8_mask(index)};
      spread_fours(kTables, bytes_at<256>(kGridCodes.iq3_xxs[0], index, bits),
                   bytes_at<256>(kGridCodes.iq3_xxs[1], index, bits), interleave(v, signs, high_signs), s.u + 4 * v);
    }
    s.scale[0] = mul(halves_up(shift_right32(two_of(p + 66, next + 66), 28), 0.5F), two_halves(p, next));
  }
};

template <> struct RowFormat<IQ3_S> {
  static constexpr Order kOrder = Order::kAcrossTwos;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ3_S>& s) {
    static constexpr Tables3 kTables = tables_of_threes(kGrid3SValues, IQ3_S::kOffset);
    const uint8_t* next = p + IQ3_S::kBytes;
    const __m512i signs = by_turns(p + 74, next + 74), high_signs = shift_right16(signs, 4);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const uint8_t* block = v == 0 ? p : next;
      const __m512i index = load64(block + 2);
      const __mmask64 bits[] = {_mm512_movepi8_mask(index), load_u64(block + 66)};
      spread_fours(kTables, bytes_at<512>(kGridCodes.iq3_s[0], index, bits),
                   bytes_at<512>(kGridCodes.iq3_s[1], index, bits), interleave(v, signs, high_signs), s.u + 4 * v);
    }
    // 2 s + 1; nibble b of a block's four bytes to lane b.
    const __m512i nibble = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i both = _mm512_mask_mov_epi32(_mm512_set1_epi32(static_cast<int>(load_u32(p + 106))), 0xff00,
                                               _mm512_set1_epi32(static_cast<int>(load_u32(next + 106))));
    s.scale[0] = mul(halves_up(_mm512_srlv_epi32(both, nibble), 2.0F), two_halves(p, next));
  }
};

/// A stretch of IQ1: u = 8 * (element + 1) + delta + 1. Of each point the low byte of its index, a byte whose bits 0..2
/// are the upper three, and 2 or 0 for a delta of 1 or -1.
static inline __attribute__((always_inline)) void spread_ternary(__m512i low, __m512i high, __m512i delta, __m512i* u) {
  const __mmask64 bits[] = {_mm512_movepi8_mask(low), _mm512_test_epi8_mask(high, splat8(1)),
                            _mm512_test_epi8_mask(high, splat8(2)), _mm512_test_epi8_mask(high, splat8(4))};
  const __m512i first = bytes_at<2048>(kGridCodes.iq1_low, low, bits);
  const __m512i run = with_bits(shift_left16(high, 4), shift_right16(low, 4), 15);  // bits 4..10 of the index
  const __mmask64 changed = _mm512_cmpgt_epu8_mask(low, bytes_at<128>(kGridCodes.iq1_last, run, nullptr));
  const __m512i last = _mm512_mask_blend_epi8(changed, bytes_at<128>(kGridCodes.iq1_high[0], run, nullptr),
                                              bytes_at<128>(kGridCodes.iq1_high[1], run, nullptr));
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v, u += 4) {
    const __m512i numbers = interleave(v, first, last), d = interleave(v, delta, delta);
    u[0] = with_bits(d, shift_left16(numbers, 3), 0x18);
    u[1] = with_bits(d, shift_left16(numbers, 1), 0x18);
    u[2] = with_bits(d, shift_right16(numbers, 1), 0x18);
    u[3] = with_bits(d, shift_right16(numbers, 3), 0x18);
  }
}

template <> struct RowFormat<IQ1_S> {
  static constexpr Order kOrder = Order::kAcrossFours;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_S>& s) {
    const uint8_t* next = p + IQ1_S::kBytes;
    // A word for four points: three bits each from bit 0 on, the scale at bit 12, the sign of delta in bit 15.
    const __m256i words = two_sixteens(p + 34, next + 34);
    const __m512i pairs = _mm512_cvtepu32_epi64(words);
    const __m512i tops = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1818181808080808), pairs);
    spread_ternary(two_of(p + 2, next + 2), _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1916131009060300), pairs),
                   _mm512_maskz_mov_epi8(_mm512_testn_epi8_mask(tops, splat8(-128)), splat8(2)), s.u);
    s.scale[0] = mul(eighths_of_odds(shift_right32(_mm512_cvtepu16_epi32(words), 12)), two_halves(p, next));
  }
};

/// d of IQ1_M lies in the top nibbles of its four words of scales.
static inline uint16_t iq1_m_d(uint64_t words) {
  return static_cast<uint16_t>((words >> 12 & 0xf) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) |
                               (words >> 48 & 0xf000));
}

template <> struct RowFormat<IQ1_M> {
  static constexpr Order kOrder = Order::kAcrossFours;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ1_M>& s) {
    const uint8_t* next = p + IQ1_M::kBytes;
    // A nibble for each point: three bits of its index, the sign of its delta.
    const __m512i high = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400),
                                                      _mm512_cvtepu32_epi64(two_sixteens(p + 32, next + 32)));
    spread_ternary(two_of(p, next), high, _mm512_maskz_mov_epi8(_mm512_testn_epi8_mask(high, splat8(8)), splat8(2)),
                   s.u);
    // Four blocks' scales lie in two words: six bits each, three a half.
    const __m512i words = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                                   _mm512_castsi128_si512(two_eights(p + 48, next + 48)));
    const __m512i at = _mm512_setr_epi32(0, 6, 16, 22, 0, 6, 16, 22, 0, 6, 16, 22, 0, 6, 16, 22);
    const uint16_t d[2] = {iq1_m_d(load_u64(p + 48)), iq1_m_d(load_u64(next + 48))};
    const __m512 both = two_halves(d, d + 1);
    s.scale[0] = mul(eighths_of_odds(_mm512_srlv_epi32(words, at)), both);
    s.scale[1] = mul(eighths_of_odds(_mm512_srlv_epi32(words, _mm512_add_epi32(at, splat32(3)))), both);
  }
};

/// Panels of these formats, for many columns: a row's stretch is a panel's chunk.
template <typename Format>
static inline void unpack_stretches(const uint8_t* const* rows, int64_t offset, Panel& panel, Prefetcher& ahead) {
  constexpr Order kOrder = RowFormat<Format>::kOrder;
  static_assert(is_across(kOrder));
  constexpr int kHalves = 32 / Format::kSub, kPart = kUnpackLines<Format> * 2 / kRows + 1;
  alignas(64) uint8_t u[kRows][kChunk];
  alignas(64) float scale[kHalves][kRows][kRows];
  const uint8_t* starts[kRows];
  const uint8_t* scale_starts[kHalves][kRows];
  for (int i = 0; i < kRows; ++i) {
    ahead.lines<kPart>();
    Stretch<Format> s;
    RowFormat<Format>::load(rows[i] + offset, s);
    starts[i] = u[i];
    // The elements of a half block, in a lane of each of four vectors, in a row again: those of lane 4 l + k become
    // quarter l of vector 4 v + k.
    for (int v = 0; v < 2; ++v) {
      const Bytes* from = s.u + 4 * v;
      const Bytes a = _mm512_unpacklo_epi8(from[0], from[1]), b = _mm512_unpackhi_epi8(from[0], from[1]);
      const Bytes c = _mm512_unpacklo_epi8(from[2], from[3]), d = _mm512_unpackhi_epi8(from[2], from[3]);
      store(u[i] + 256 * v, _mm512_unpacklo_epi16(a, c));
      store(u[i] + 256 * v + 64, _mm512_unpackhi_epi16(a, c));
      store(u[i] + 256 * v + 128, _mm512_unpacklo_epi16(b, d));
      store(u[i] + 256 * v + 192, _mm512_unpackhi_epi16(b, d));
    }
    for (int h = 0; h < kHalves; ++h) {
      store(scale[h][i], s.scale[h]);
      scale_starts[h][i] = reinterpret_cast<const uint8_t*>(scale[h][i]);
    }
  }
  for (int v = 0; v < 2; ++v) {
    for (int lane = 0; lane < 16; lane += 2) {
      const int at = 256 * v + lane % 4 * 64 + lane / 4 * 16;
      Bytes out[8];
      transpose16(starts, at, out);
      transpose16(starts, at + 64, out + 4);
      store_groups(panel.u + 8 * (half_block(kOrder, v, lane) / 2), out);
    }
  }
  for (int h = 0; h < kHalves; ++h) {
    for (int block = 0; block < kStretchBlocks; block += 4) {
      Bytes out[4];
      transpose16(scale_starts[h], 4 * block, out);
      for (int j = 0; j < 4; ++j) store(panel.scale[(block + j) * kHalves + h], _mm512_castsi512_ps(out[j]));
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
