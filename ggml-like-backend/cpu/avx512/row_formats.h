// From a stretch of a weight row, 16 blocks of 32 elements, to operands in registers: what rows.h multiplies.
//
// The bytes come in the order that is cheapest to unpack, named by Order; activations are laid out in the same one.
#pragma once

#include "cpu/avx512/unpack.h"

namespace fathom::cpu::avx512 {

static constexpr int kStretchBlocks = 16;

/// Which elements lie where in a stretch's eight vectors.
enum class Order : uint8_t {
  kPlain,        ///< blocks 0 1, 2 3, 4 5, 6 7 ...: as in the row
  kEvenOdd,      ///< blocks 0 2, 1 3, 4 6, 5 7 ...: low and high nibbles of 64 bytes of Q4_K
  kHalvesApart,  ///< first halves of blocks 0 1 2 3, their second halves ...: nibbles of blocks of their own
  kPairs,        ///< vector 2 j: of blocks j, j + 4, j + 8, j + 12 the first eight elements of each half, then the last
                 ///< eight: the four pairs of bits of two blocks of Q2_K
  kAcrossTwos,   ///< a lane of vector 4 v + e: elements e, 4 + e, 8 + e, 12 + e of a half block, so that four vectors
                ///< add up to sums of half blocks. Lanes of a 128-bit quarter: of two blocks; blocks 0..7 in vectors of
                ///< v = 0
  kAcrossFours,  ///< the same, but a quarter has two of four blocks in a row, vectors of v = 1 the other two
};

static constexpr bool is_across(Order order) { return order == Order::kAcrossTwos || order == Order::kAcrossFours; }

/// The half block whose elements lie across in a lane of the vectors of v.
static constexpr int half_block(Order order, int v, int lane) {
  return order == Order::kAcrossTwos ? 16 * v + lane : lane / 4 * 8 + 4 * v + lane % 4;
}

/// Byte of a stretch at which eight elements begin, of orders that keep so many together.
static constexpr int place(Order order, int block, int eighth) {
  const int half = eighth / 2, rest = eighth % 2 * 8;
  switch (order) {
    case Order::kPlain: return 32 * block + 16 * half + rest;
    case Order::kEvenOdd: return block / 4 * 128 + block % 2 * 64 + block / 2 % 2 * 32 + 16 * half + rest;
    case Order::kHalvesApart: return block / 4 * 128 + half * 64 + block % 4 * 16 + rest;
    case Order::kPairs: return block % 4 * 128 + 8 * rest + block / 4 % 2 * 32 + half * 16 + block / 8 * 8;
    case Order::kAcrossTwos:
    case Order::kAcrossFours: break;
  }
  return 0;
}

struct alignas(64) Lanes {
  int32_t at[16];
};

/// Where the sum of a block's half is found in the two vectors that are left of eight.
static constexpr Lanes half_lanes(Order order, int half) {
  Lanes lanes{};
  for (int block = 0; block < 16; ++block) {
    const int at = place(order, block, 2 * half), vector = at / 64, quarter = at % 64 / 16;
    lanes.at[block] =
        vector / 4 * 16 + quarter * 4 + (order == Order::kPairs ? vector / 2 % 2 * 2 + block / 8 : vector % 4);
  }
  return lanes;
}
template <Order kOrder, int kHalf> static constexpr Lanes kHalfLanes = half_lanes(kOrder, kHalf);

/// Where the sum of a block is found in the one vector that is made of kHalvesApart's pairs.
static constexpr Lanes four_block_lanes() {
  Lanes lanes{};
  for (int block = 0; block < 16; ++block) lanes.at[block] = block % 4 * 4 + block / 4;
  return lanes;
}
static constexpr Lanes kFourBlockLanes = four_block_lanes();

/// Where a block's number is found when quarters have two of the first eight blocks and two of the last.
static constexpr Lanes two_block_lanes() {
  Lanes lanes{};
  for (int block = 0; block < 16; ++block) lanes.at[block] = block % 8 / 2 * 4 + block / 8 * 2 + block % 2;
  return lanes;
}
static constexpr Lanes kTwoBlockLanes = two_block_lanes();

/// One row's stretch; scales and minima with a lane for each block, two vectors where its halves have their own.
template <typename Format> struct Stretch {
  __m512i u[8];
  __m512 scale[32 / Format::kSub];
  __m512 min[32 / Format::kSub];
};

static inline __m512i join(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
static inline __m512 join(__m256 low, __m256 high) {
  return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high), 1));
}
/// First dword of each of 16 blocks. (Bringing them together by permutations of whole vectors is as fast from the
/// cache, and takes 1.4 times as long from memory: the lines are waited for twice.)
static inline __m512i first_dwords(const uint8_t* p, int64_t stride) {
  const uint8_t* blocks[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) blocks[i] = p + i * stride;
  return gather_first(blocks, 0);
}
/// Eight lanes of each of two numbers.
static inline __m512 two_halves(const void* low, const void* high) {
  int16_t a, b;
  __builtin_memcpy(&a, low, 2), __builtin_memcpy(&b, high, 2);
  return _mm512_cvtph_ps(_mm256_mask_set1_epi16(_mm256_set1_epi16(a), 0xff00, b));
}

/// How a format's stretches are loaded: load(p, stretch), the order in which its bytes come, and up to how many columns
/// rows are faster than panels: a second one pays where unpacking is very cheap, or is what everything waits for.
template <typename Format> struct RowFormat;

template <> struct RowFormat<Q8_0> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q8_0>& s) {
    const __m512i flip = splat8(kFullRangeOffset);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = bit_xor(join(load32(p + 68 * j + 2), load32(p + 68 * j + 36)), flip);
    s.scale[0] = low_halves(first_dwords(p, 34));
  }
};

/// Bytes of four blocks of 32 elements, which are a few more than a vector: two overlapping loads bring them.
template <typename Format> struct FourBlocks {
  static constexpr int kBytes = Format::kBytes, kSecond = 4 * kBytes - 64;
  __m512i first, second;

  explicit FourBlocks(const uint8_t* p) : first(_mm512_loadu_si512(p)), second(_mm512_loadu_si512(p + kSecond)) {}

  struct alignas(64) Places {
    uint8_t at[64];
  };
  /// Byte i of the result is that of block i / 16 at kHeader + i % 16 / kRepeat % kPeriod.
  template <int kHeader, int kRepeat = 1, int kPeriod = 16> __m512i pick() const {
    static constexpr Places kPlaces = [] {
      Places places{};
      for (int i = 0; i < 64; ++i) {
        const int at = i / 16 * kBytes + kHeader + i % 16 / kRepeat % kPeriod;
        places.at[i] = static_cast<uint8_t>(at < 64 ? at : 64 + at - kSecond);
      }
      return places;
    }();
    return _mm512_permutex2var_epi8(first, _mm512_load_si512(kPlaces.at), second);
  }
};

/// Blocks of 32 nibbles of their own behind kHeader bytes; with a fifth bit each where kFifth bytes lie before the
/// bits.
template <typename Format, int kHeader, int kFifth = 0>
static inline __attribute__((always_inline)) void load_nibbles(const uint8_t* p, __m512i* u) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const FourBlocks<Format> four(p + 4 * j * Format::kBytes);
    const __m512i packed = four.template pick<kHeader>();
    u[2 * j] = low_nibbles(packed);
    u[2 * j + 1] = high_nibbles(packed);
    if constexpr (kFifth != 0) {
      // The block's 32 bits in every quarter of 128; element i's at bit 4 of eight bits from i - 4 on.
      const __m512i bits = four.template pick<kFifth, 1, 4>(), fifth = splat8(0x10);
      const __m512i start = _mm512_broadcast_i32x4(_mm_setr_epi8(-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
      u[2 * j] = or_masked(u[2 * j], _mm512_multishift_epi64_epi8(start, bits), fifth);
      u[2 * j + 1] =
          or_masked(u[2 * j + 1], _mm512_multishift_epi64_epi8(_mm512_add_epi8(start, splat8(16)), bits), fifth);
    }
  }
}
static inline __attribute__((always_inline)) void look_up_all(const int8_t* values, int offset, __m512i* u) {
  const __m512i table = lookup_table(values, offset);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) u[j] = look_up(table, u[j]);
}

template <> struct RowFormat<Q4_0> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q4_0>& s) {
    load_nibbles<Q4_0, 2>(p, s.u);
    s.scale[0] = low_halves(first_dwords(p, Q4_0::kBytes));
  }
};
template <> struct RowFormat<Q4_1> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q4_1>& s) {
    load_nibbles<Q4_1, 4>(p, s.u);
    const __m512i headers = first_dwords(p, Q4_1::kBytes);
    s.scale[0] = low_halves(headers);
    s.min[0] = high_halves(headers);
  }
};
template <> struct RowFormat<Q5_0> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q5_0>& s) {
    load_nibbles<Q5_0, 6, 2>(p, s.u);
    s.scale[0] = low_halves(first_dwords(p, Q5_0::kBytes));
  }
};
template <> struct RowFormat<Q5_1> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q5_1>& s) {
    load_nibbles<Q5_1, 8, 4>(p, s.u);
    const __m512i headers = first_dwords(p, Q5_1::kBytes);
    s.scale[0] = low_halves(headers);
    s.min[0] = high_halves(headers);
  }
};
template <> struct RowFormat<IQ4_NL> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ4_NL>& s) {
    load_nibbles<IQ4_NL, 2>(p, s.u);
    look_up_all(kIQ4Values, IQ4_NL::kOffset, s.u);
    s.scale[0] = low_halves(first_dwords(p, IQ4_NL::kBytes));
  }
};
template <> struct RowFormat<MXFP4> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<MXFP4>& s) {
    load_nibbles<MXFP4, 1>(p, s.u);
    look_up_all(kE2M1Doubled, MXFP4::kOffset, s.u);
    s.scale[0] = mxfp4_scales(first_dwords(p, MXFP4::kBytes));
  }
};

/// Scales and minima of two blocks of Q4_K or Q5_K, whose headers are alike.
static inline __attribute__((always_inline)) void load_k_scales(const uint8_t* p, int64_t next, __m512* scale,
                                                                __m512* min) {
  const __m256i header = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + next), 1);
  // Words of 12 bytes a, b, c as a b c c: six bits of scales and minima 0..3 in a and b; of 4..7 four in c, two on top
  // of a and b.
  const __m256i words = _mm256_shuffle_epi32(header, 0xf9);
  const __m256i first = _mm256_and_si256(words, _mm256_set1_epi8(63));
  const __m256i parts = _mm256_and_si256(_mm256_srlv_epi32(words, _mm256_setr_epi32(2, 2, 0, 4, 2, 2, 0, 4)),
                                         _mm256_setr_epi32(0x30303030, 0x30303030, 0x0f0f0f0f, 0x0f0f0f0f, 0x30303030,
                                                           0x30303030, 0x0f0f0f0f, 0x0f0f0f0f));
  const __m256i second = _mm256_or_si256(parts, _mm256_shuffle_epi32(parts, 0x0e));
  const __m256i both = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(first, second), 0xd8);
  const __m512i d = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4),
                                             _mm512_castsi256_si512(header));
  *scale = mul(to_floats(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(both))), low_halves(d));
  *min = mul(to_floats(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(both, 1))), negated(high_halves(d)));
}

template <> struct RowFormat<Q4_K> {
  static constexpr Order kOrder = Order::kEvenOdd;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q4_K>& s) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i packed = _mm512_loadu_si512(p + j / 2 * Q4_K::kBytes + 16 + j % 2 * 64);
      s.u[2 * j] = low_nibbles(packed);
      s.u[2 * j + 1] = high_nibbles(packed);
    }
    load_k_scales(p, Q4_K::kBytes, s.scale, s.min);
  }
};

template <> struct RowFormat<Q5_K> {
  static constexpr Order kOrder = Order::kEvenOdd;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q5_K>& s) {
    const __m512i bit = splat8(0x10);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint8_t* block = p + i * Q5_K::kBytes;
      // Bit b of these bytes belongs to block b; the upper half serves two blocks further on.
      const __m256i bits = load32(block + 16);
      const __m512i high = join(bits, _mm256_srli_epi16(bits, 2));
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m512i packed = _mm512_loadu_si512(block + 48 + 64 * j);
        const __m512i fifth = j == 0 ? shift_left16(high, 4) : high;
        s.u[4 * i + 2 * j] = or_masked(low_nibbles(packed), fifth, bit);
        s.u[4 * i + 2 * j + 1] =
            or_masked(high_nibbles(packed), j == 0 ? shift_left16(high, 3) : shift_right16(high, 1), bit);
      }
    }
    load_k_scales(p, Q5_K::kBytes, s.scale, s.min);
  }
};

/// 16 signed bytes of each of two blocks times its d.
static inline __attribute__((always_inline)) void load_signed_scales(__m128i low, __m128i high, __m512 d,
                                                                     __m512* scale) {
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  const __m256i apart =
      _mm256_shuffle_epi8(bytes, _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8,
                                                  10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  const __m256i both = _mm256_permute4x64_epi64(apart, 0xd8);
  scale[0] = mul(to_floats(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(both))), d);
  scale[1] = mul(to_floats(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(both, 1))), d);
}

template <> struct RowFormat<Q6_K> {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 2;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q6_K>& s) {
    const __m512i upper = splat8(0x30);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {  // 128 elements
      const uint8_t* block = p + j / 2 * Q6_K::kBytes;
      const __m512i low = _mm512_loadu_si512(block + 64 * (j % 2));
      const __m256i high = load32(block + 128 + 32 * (j % 2));
      const __m256i shifted = _mm256_srli_epi16(high, 2);
      s.u[2 * j] = or_masked(low_nibbles(low), shift_left16(join(high, shifted), 4), upper);
      s.u[2 * j + 1] = or_masked(high_nibbles(low), join(high, shifted), upper);
    }
    load_signed_scales(load16(p + 192), load16(p + Q6_K::kBytes + 192), two_halves(p + 208, p + Q6_K::kBytes + 208),
                       s.scale);
  }
};

/// Bytes at two addresses in pairs of eights: what kPairs makes of them.
static inline __attribute__((always_inline)) void pair(__m512i low, __m512i high, __m512i* out) {
  out[0] = _mm512_unpacklo_epi64(low, high);
  out[1] = _mm512_unpackhi_epi64(low, high);
}

template <> struct RowFormat<Q2_K> {
  static constexpr Order kOrder = Order::kPairs;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q2_K>& s) {
    const uint8_t* next = p + Q2_K::kBytes;
    const __m512i two = splat8(3);
    __m512i packed[2];
    pair(_mm512_loadu_si512(p + 16), _mm512_loadu_si512(next + 16), packed);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) s.u[j] = bit_and(shift_right16(packed[j % 2], j / 2 * 2), two);
    // A word for each block: scale and minimum of its first half, of its second half.
    const __m512i words =
        _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(next), 1));
    const __m512i four = splat32(15);
    const __m512 d = two_halves(p + 80, next + 80), dmin = negated(two_halves(p + 82, next + 82));
    s.scale[0] = mul(to_floats(bit_and(words, four)), d);
    s.min[0] = mul(to_floats(bit_and(shift_right32(words, 4), four)), dmin);
    s.scale[1] = mul(to_floats(bit_and(shift_right32(words, 8), four)), d);
    s.min[1] = mul(to_floats(shift_right32(words, 12)), dmin);
  }
};

template <> struct RowFormat<Q3_K> {
  static constexpr Order kOrder = Order::kPairs;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<Q3_K>& s) {
    const uint8_t* next = p + Q3_K::kBytes;
    const __m512i two = splat8(3), third = splat8(4);
    __m512i packed[2], mask[2];
    pair(_mm512_loadu_si512(p + 32), _mm512_loadu_si512(next + 32), packed);
    // Bit b of these bytes belongs to block b: the upper half serves four blocks further on.
    const __m256i low = load32(p), high = load32(next);
    pair(join(low, _mm256_srli_epi16(low, 4)), join(high, _mm256_srli_epi16(high, 4)), mask);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m512i m = mask[j % 2];
      const __m512i bit = j / 2 < 2 ? shift_left16(m, 2 - j / 2) : shift_right16(m, j / 2 - 2);
      s.u[j] = or_masked(bit_and(shift_right16(packed[j % 2], j / 2 * 2), two), bit, third);
    }
    // The last 16 bytes: two of quants, twelve of scales, d. Low four bits of scale j: byte j % 8, nibble j / 8; upper
    // two: byte 8 + j % 4, pair j / 4.
    const __m256i tail = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + 94)), load16(next + 94), 1);
    const __m256i nibbles = _mm256_shuffle_epi8(
        tail, _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9)));
    const __m256i pairs = _mm256_shuffle_epi8(
        tail,
        _mm256_broadcastsi128_si256(_mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13)));
    const __m256i four =
        _mm256_and_si256(_mm256_srlv_epi64(nibbles, _mm256_set_epi64x(4, 0, 4, 0)), _mm256_set1_epi8(15));
    const __m256i upper = _mm256_rolv_epi32(pairs, _mm256_setr_epi32(4, 2, 0, 30, 4, 2, 0, 30));
    const __m256i six = _mm256_ternarylogic_epi32(four, upper, _mm256_set1_epi8(0x30), 0xf8);
    // A word for each block; each byte to the top, times d / 2^24.
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_sub_epi8(six, _mm256_set1_epi8(32)));
    const __m512 d = mul(two_halves(p + 108, next + 108), splat(0x1p-24F));
    s.scale[0] = mul(to_floats(shift_left32(words, 24)), d);
    s.scale[1] = mul(to_floats(bit_and(shift_left32(words, 16), splat32(static_cast<int>(0xff000000)))), d);
  }
};

template <> struct RowFormat<IQ4_XS> {
  static constexpr Order kOrder = Order::kHalvesApart;
  static constexpr int kColumns = 1;
  static inline __attribute__((always_inline)) void load(const uint8_t* p, Stretch<IQ4_XS>& s) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i packed = _mm512_loadu_si512(p + j / 2 * IQ4_XS::kBytes + 8 + j % 2 * 64);
      s.u[2 * j] = low_nibbles(packed);
      s.u[2 * j + 1] = high_nibbles(packed);
    }
    look_up_all(kIQ4Values, IQ4_XS::kOffset, s.u);
    // Lane b of a block: four bits from nibble b of scales_l, two from pair b of scales_h.
    const auto pick = [](const void* a, const void* b) {
      return _mm512_mask_mov_epi32(_mm512_set1_epi32(static_cast<int>(load_u32(a))), 0xff00,
                                   _mm512_set1_epi32(static_cast<int>(load_u32(b))));
    };
    const __m512i nibble = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i pair = _mm512_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i head = pick(p, p + IQ4_XS::kBytes), low = pick(p + 4, p + IQ4_XS::kBytes + 4);
    const __m512i four = bit_and(_mm512_srlv_epi32(low, nibble), splat32(15));
    const __m512i two = bit_and(_mm512_srlv_epi32(head, pair), splat32(3));
    const __m512i ls = _mm512_sub_epi32(bit_or(four, shift_left32(two, 4)), splat32(32));
    s.scale[0] = mul(to_floats(ls), two_halves(p, p + IQ4_XS::kBytes));
  }
};

}  // namespace fathom::cpu::avx512
