// From blocks of 16 weight rows to a panel: what unpack_formats.h works with, and the way of all other formats.
#pragma once

#include "cpu/avx2/decode_block.h"
#include "cpu/avx512/panel.h"

namespace fathom::cpu::avx512 {

using Bytes = __m512i;                        ///< four bytes of each row
using Floats = __m512;                        ///< one number of each row
static constexpr int kFullRangeOffset = 128;  ///< panels hold signed bytes of weights as w + 128

static inline Bytes splat8(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
static inline Bytes splat32(int v) { return _mm512_set1_epi32(v); }
static inline Floats splat(float v) { return _mm512_set1_ps(v); }
static inline Bytes bit_and(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
static inline Bytes bit_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
static inline Bytes bit_xor(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
static inline Bytes sub8(Bytes a, Bytes b) { return _mm512_sub_epi8(a, b); }
static inline Bytes shift_left16(Bytes v, int n) { return _mm512_slli_epi16(v, static_cast<unsigned>(n)); }
static inline Bytes shift_right16(Bytes v, int n) { return _mm512_srli_epi16(v, static_cast<unsigned>(n)); }
static inline Bytes shift_left32(Bytes v, int n) { return _mm512_slli_epi32(v, static_cast<unsigned>(n)); }
static inline Bytes shift_right32(Bytes v, int n) { return _mm512_srli_epi32(v, static_cast<unsigned>(n)); }
static inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats negated(Floats v) { return _mm512_sub_ps(_mm512_setzero_ps(), v); }
static inline Floats to_floats(Bytes v) { return _mm512_cvtepi32_ps(v); }
static inline void store(uint8_t* to, Bytes v) { _mm512_store_si512(to, v); }
static inline void store(float* to, Floats v) { _mm512_store_ps(to, v); }

/// A table of 16 signed values plus an offset, and its entries at 0..15.
static inline Bytes lookup_table(const int8_t* values, int offset) {
  return _mm512_broadcast_i32x4(_mm256_castsi256_si128(value_table(values, offset)));
}
static inline Bytes look_up(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }

/// Lane i of in[j] is row 4i + j; dword d of it goes to lane 4i + j of out[d].
static inline void transpose4(const Bytes* in, Bytes* out) {
  const Bytes a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
  const Bytes c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

/// Transposes 16 rows of 32 bytes: out[g], lane i = bytes 4g..4g+3 of row i.
static inline void transpose32(const uint8_t* const* rows, int64_t offset, Bytes* out) {
  Bytes low[4], high[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto pair = [&](int first) {
      return _mm512_inserti64x4(_mm512_castsi256_si512(load32(rows[first] + offset)), load32(rows[first + 4] + offset),
                                1);
    };
    const Bytes a = pair(j), b = pair(j + 8);
    low[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    high[j] = _mm512_shuffle_i32x4(a, b, 0xdd);
  }
  transpose4(low, out);
  transpose4(high, out + 4);
}

/// The 16 bytes at rows[i] + offset, four rows to a vector, as transpose4 takes them.
static inline void load_rows16(const uint8_t* const* rows, int64_t offset, Bytes* out) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Bytes v = _mm512_castsi128_si512(load16(rows[j] + offset));
    v = _mm512_inserti32x4(v, load16(rows[j + 4] + offset), 1);
    v = _mm512_inserti32x4(v, load16(rows[j + 8] + offset), 2);
    out[j] = _mm512_inserti32x4(v, load16(rows[j + 12] + offset), 3);
  }
}

/// Transposes 16 rows of 16 bytes to four vectors.
static inline void transpose16(const uint8_t* const* rows, int64_t offset, Bytes* out) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  transpose4(in, out);
}

/// First dword of the 16 readable bytes at rows[i] + offset.
static inline Bytes gather_first(const uint8_t* const* rows, int64_t offset) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  return _mm512_unpacklo_epi64(_mm512_unpacklo_epi32(in[0], in[1]), _mm512_unpacklo_epi32(in[2], in[3]));
}
/// Last dword of them.
static inline Bytes gather_last(const uint8_t* const* rows, int64_t offset) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  return _mm512_unpackhi_epi64(_mm512_unpackhi_epi32(in[0], in[1]), _mm512_unpackhi_epi32(in[2], in[3]));
}

/// Half-precision numbers in the low or the high words of the lanes.
static inline Floats low_halves(Bytes v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
static inline Floats high_halves(Bytes v) { return low_halves(_mm512_srli_epi32(v, 16)); }

static inline Bytes low_nibbles(Bytes v) { return bit_and(v, splat8(15)); }
static inline Bytes high_nibbles(Bytes v) { return low_nibbles(shift_right16(v, 4)); }
/// a | (b & mask)
static inline Bytes or_masked(Bytes a, Bytes b, Bytes mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }

/// Byte j of every lane, zero-extended.
static inline Bytes byte_of(Bytes v, int j) {
  return _mm512_shuffle_epi8(v, _mm512_set4_epi32(static_cast<int>(0x8080800c) | j, static_cast<int>(0x80808008) | j,
                                                  static_cast<int>(0x80808004) | j, static_cast<int>(0x80808000) | j));
}
/// Byte j of every lane as a signed number times 2^24.
static inline Bytes signed_byte_of(Bytes v, int j) {
  return _mm512_shuffle_epi8(
      v, _mm512_set4_epi32(0x0c808080 | j << 24, 0x08808080 | j << 24, 0x04808080 | j << 24, 0x00808080 | j << 24));
}

/// Adds bits 4g..4g+3 of each lane of `high` as the fifth bits of group g.
static inline void add_fifth_bits(Bytes high, Bytes* u) {
  // Byte j of group g needs bit 4g + j at position 4: the eight bits from 4g + j - 4 on, modulo 64, of the lane's half
  // of a 64-bit word.
  const Bytes start = _mm512_set1_epi64(static_cast<long long>(0x1f1e1d1cfffefdfcULL));
  const Bytes bit = splat8(0x10);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const Bytes control = _mm512_add_epi8(start, splat8(4 * g));
    u[g] = or_masked(u[g], _mm512_multishift_epi64_epi8(control, high), bit);
  }
}

/// 2^(e - 128) for the low bytes e, subnormal for e = 0 and 1.
static inline Floats mxfp4_scales(Bytes v) {
  const Bytes e = bit_and(v, _mm512_set1_epi32(255));
  const Bytes normal = shift_left32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const Bytes tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  return _mm512_castsi512_ps(_mm512_mask_blend_epi32(_mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)), normal, tiny));
}

}  // namespace fathom::cpu::avx512

#define FATHOM_ISA avx512
#include "cpu/unpack_formats.h"
#undef FATHOM_ISA
