// From blocks of 8 weight rows to a panel: what unpack_formats.h works with.
#pragma once

#include "cpu/avx2/decode_block.h"
#include "cpu/avx2/panel.h"

namespace fathom::cpu::FATHOM_ISA {

using Bytes = __m256i;  ///< four bytes of each row
using Floats = __m256;  ///< one number of each row
#ifdef __AVXVNNI__
static constexpr int kFullRangeOffset = 128;  ///< panels hold signed bytes of weights as w + 128
#else
static constexpr int kFullRangeOffset = 0;  ///< panels hold signed bytes of weights as they are
#endif

static inline Bytes splat8(int v) { return _mm256_set1_epi8(static_cast<char>(v)); }
static inline Bytes splat32(int v) { return _mm256_set1_epi32(v); }
static inline Floats splat(float v) { return _mm256_set1_ps(v); }
static inline Bytes bit_and(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
static inline Bytes bit_or(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
static inline Bytes bit_xor(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
static inline Bytes sub8(Bytes a, Bytes b) { return _mm256_sub_epi8(a, b); }
static inline Bytes shift_left16(Bytes v, int n) { return _mm256_slli_epi16(v, n); }
static inline Bytes shift_right16(Bytes v, int n) { return _mm256_srli_epi16(v, n); }
static inline Bytes shift_left32(Bytes v, int n) { return _mm256_slli_epi32(v, n); }
static inline Bytes shift_right32(Bytes v, int n) { return _mm256_srli_epi32(v, n); }
static inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats negated(Floats v) { return _mm256_sub_ps(_mm256_setzero_ps(), v); }
static inline Floats to_floats(Bytes v) { return _mm256_cvtepi32_ps(v); }
static inline void store(uint8_t* to, Bytes v) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), v); }
static inline void store(float* to, Floats v) { _mm256_store_ps(to, v); }

/// A table of 16 signed values plus an offset, and its entries at 0..15.
static inline Bytes lookup_table(const int8_t* values, int offset) { return value_table(values, offset); }
static inline Bytes look_up(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }

/// The 16 bytes at rows[i] + offset, rows j and j + 4 to a vector.
static inline void load_rows16(const uint8_t* const* rows, int64_t offset, Bytes* out) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(rows[j] + offset)), load16(rows[j + 4] + offset), 1);
  }
}

/// Transposes 8 rows of 16 bytes: out[g], lane i = bytes 4g..4g+3 of row i.
static inline void transpose16(const uint8_t* const* rows, int64_t offset, Bytes* out) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  const Bytes a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
  const Bytes c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}
static inline void transpose32(const uint8_t* const* rows, int64_t offset, Bytes* out) {
  transpose16(rows, offset, out);
  transpose16(rows, offset + 16, out + 4);
}

/// First dword of the 16 readable bytes at rows[i] + offset.
static inline Bytes gather_first(const uint8_t* const* rows, int64_t offset) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  return _mm256_unpacklo_epi64(_mm256_unpacklo_epi32(in[0], in[1]), _mm256_unpacklo_epi32(in[2], in[3]));
}
/// Last dword of them.
static inline Bytes gather_last(const uint8_t* const* rows, int64_t offset) {
  Bytes in[4];
  load_rows16(rows, offset, in);
  return _mm256_unpackhi_epi64(_mm256_unpackhi_epi32(in[0], in[1]), _mm256_unpackhi_epi32(in[2], in[3]));
}

/// Half-precision numbers in the high or the low words of the lanes.
static inline Floats high_halves(Bytes v) {
  const Bytes words = _mm256_packus_epi32(_mm256_srli_epi32(v, 16), _mm256_setzero_si256());
  return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
}
static inline Floats low_halves(Bytes v) { return high_halves(_mm256_slli_epi32(v, 16)); }

static inline Bytes low_nibbles(Bytes v) { return bit_and(v, splat8(15)); }
static inline Bytes high_nibbles(Bytes v) { return low_nibbles(shift_right16(v, 4)); }
/// a | (b & mask)
static inline Bytes or_masked(Bytes a, Bytes b, Bytes mask) { return bit_or(a, bit_and(b, mask)); }

/// Byte j of every lane, zero-extended.
static inline Bytes byte_of(Bytes v, int j) { return bit_and(shift_right32(v, 8 * j), splat32(255)); }
/// Byte j of every lane as a signed number times 2^24.
static inline Bytes signed_byte_of(Bytes v, int j) {
  return bit_and(shift_left32(v, 24 - 8 * j), splat32(static_cast<int>(0xff000000)));
}

/// Adds bits 4g..4g+3 of each lane of `high` as the fifth bits of group g.
static inline void add_fifth_bits(Bytes high, Bytes* u) {
  const Bytes bit = splat8(0x10);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const int byte = g / 2 * 0x01010101;
    const Bytes control = _mm256_set_epi32(byte + 0x0c0c0c0c, byte + 0x08080808, byte + 0x04040404, byte,
                                           byte + 0x0c0c0c0c, byte + 0x08080808, byte + 0x04040404, byte);
    const Bytes mask = splat32(static_cast<int>(g % 2 == 0 ? 0x08040201u : 0x80402010u));
    const Bytes set = _mm256_cmpeq_epi8(bit_and(_mm256_shuffle_epi8(high, control), mask), mask);
    u[g] = or_masked(u[g], set, bit);
  }
}

/// 2^(e - 128) for the low bytes e, subnormal for e = 0 and 1.
static inline Floats mxfp4_scales(Bytes v) {
  const Bytes e = bit_and(v, splat32(255));
  const Bytes normal = shift_left32(_mm256_sub_epi32(e, splat32(1)), 23);
  const Bytes tiny = _mm256_sllv_epi32(splat32(0x00200000), e);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(splat32(2), e)));
}

}  // namespace fathom::cpu::FATHOM_ISA

#include "cpu/unpack_formats.h"
