// Byte layouts of the GGUF block formats. Plain structs and two small value tables; includes nothing but <cstdint>, so
// that files compiled for one instruction set may include it. All multi-byte fields are little endian; `d`, `m`, `dmin`
// are IEEE halves. Structs are packed: a block may lie at any address. Source: the GGUF formats as ggml defines them,
// checked block by block in tests/core/dequantize_test.cpp.
//
// In the drawings, "a:n" is a field of n bytes at byte a. y[i] is element i of the block.
#pragma once

#include <cstdint>

namespace fathom {

constexpr int kSmallBlock = 32;   ///< elements of the simple formats, IQ4_NL and MXFP4
constexpr int kSuperBlock = 256;  ///< elements of the K and IQ formats

#pragma pack(push, 1)

// ---- 32 elements. Nibble j (low half of byte j) is element j, the high half is element j + 16. ----

/// 0:2 d | 2:16 nibbles.                               y = d * (q - 8)
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
/// 0:2 d | 2:2 m | 4:16 nibbles.                       y = d * q + m
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};
/// 0:2 d | 2:4 fifth bits, bit i for y[i] | 6:16 nibbles.        y = d * (q - 16)
struct BlockQ5_0 {
  uint16_t d;
  uint32_t qh;
  uint8_t qs[16];
};
/// 0:2 d | 2:2 m | 4:4 fifth bits | 8:16 nibbles.      y = d * q + m
struct BlockQ5_1 {
  uint16_t d;
  uint16_t m;
  uint32_t qh;
  uint8_t qs[16];
};
/// 0:2 d | 2:32 signed bytes in order.                 y = d * q
struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
/// 0:2 d | 2:16 nibbles.                               y = d * kIQ4Values[q]
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t qs[16];
};
/// 0:1 e (E8M0) | 1:16 nibbles.                        y = kE2M1Doubled[q] * 2^(e - 128)
struct BlockMXFP4 {
  uint8_t e;
  uint8_t qs[16];
};

// ---- 256 elements, K formats. half = i / 128, r = i % 128. ----

/// 0:16 scales | 16:64 qs | 80:2 d | 82:2 dmin.        y = d * (sc & 15) * q - dmin * (sc >> 4)
/// s = r / 32, l = r % 32: q = bits 2s..2s+1 of qs[half*32 + l], sc = scales[half*8 + 2s + l/16], one per 16 elements.
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d;
  uint16_t dmin;
};
/// 0:32 hmask | 32:64 qs | 96:12 scales | 108:2 d.     y = d * (sc - 32) * (q - 4)
/// s, l as above: low bits 2s..2s+1 of qs[half*32 + l], third bit = bit half*4+s of hmask[l].
/// sc j = half*8 + 2s + l/16, 6 bits: low four in scales[j%8] (high nibble from j = 8), high two in
/// bits 2*(j/4).. of scales[8 + j%4].
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};
/// 0:2 d | 2:2 dmin | 4:12 scales | 16:128 qs.         y = d * sc * q - dmin * mn
/// g = i / 64, h = i % 64 / 32, l = i % 32: q = nibble h of qs[g*32 + l]; (sc, mn) = pair 2g + h of get_scale_min.
struct BlockQ4_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
/// 0:2 d | 2:2 dmin | 4:12 scales | 16:32 qh | 48:128 qs.        as Q4_K, fifth bit of q = bit 2g+h of qh[l]
struct BlockQ5_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
/// 0:128 ql | 128:64 qh | 192:16 scales | 208:2 d.     y = d * scales[half*8 + 2k + l/16] * (q - 32)
/// k = r / 32, l = r % 32: low nibble (k < 2) or high nibble (k >= 2) of ql[half*64 + (k&1)*32 + l], upper bits
/// 2k..2k+1 of qh[half*32 + l].
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

// ---- 256 elements, IQ formats: 8 sub-blocks ib of 32, each 4 groups l of 8. Grids and signs: codebooks.h. ----

/// 0:2 d | 2:2 scales_h | 4:4 scales_l | 8:128 qs.     y = d * (ls - 32) * kIQ4Values[q]
/// ls of sub-block ib: low four bits = nibble ib&1 of scales_l[ib/2], high two = bits 2ib.. of scales_h.
/// qs[16*ib + j]: low nibble element j, high nibble element j + 16 of the sub-block.
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
/// 0:2 d | 2:64 eight bytes per ib.                    y = d * (0.5 + s) / 4 * grid * sign
/// Of the eight bytes: 0..3 grid indices of groups 0..3; 4..7 a 32-bit word a: signs of group l = kEvenSigns[a>>7l &
/// 127], s = a >> 28.
struct BlockIQ2_XXS {
  uint16_t d;
  uint16_t qs[32];
};
/// 0:2 d | 2:64 qs | 66:8 scales.                      y = d * (0.5 + s) / 4 * grid * sign
/// qs[4*ib + l]: bits 0..8 grid index, bits 9..15 index into kEvenSigns; s = nibble l/2 of scales[ib].
struct BlockIQ2_XS {
  uint16_t d;
  uint16_t qs[32];
  uint8_t scales[8];
};
/// 0:2 d | 2:32 qs | 34:32 signs | 66:8 qh | 74:8 scales.        y = d * (0.5 + s) / 4 * grid * sign
/// Grid index = qs[4*ib + l] + 256 * (bits 2l.. of qh[ib]); signs[4*ib + l] one bit per element; s as IQ2_XS.
struct BlockIQ2_S {
  uint16_t d;
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
/// 0:2 d | 2:64 qs | 66:32 one word a per ib.          y = d * (0.5 + s) / 2 * grid * sign
/// Group l = grid points qs[8*ib + 2l] and qs[8*ib + 2l + 1] of 4 elements; signs and s in a as in IQ2_XXS.
struct BlockIQ3_XXS {
  uint16_t d;
  uint8_t qs[64];
  uint32_t signs_scale[8];
};
/// 0:2 d | 2:64 qs | 66:8 qh | 74:32 signs | 106:4 scales.       y = d * (1 + 2s) * grid * sign
/// Grid point k = 0..7 of 4 elements: index qs[8*ib + k] + 256 * (bit k of qh[ib]); s = nibble ib&1 of scales[ib/2].
struct BlockIQ3_S {
  uint16_t d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};
/// 0:2 d | 2:32 qs | 34:16 qh.                         y = d * (2s + 1) * (grid + delta)
/// qh[ib]: bits 3l..3l+2 the high bits of group l's grid index, 12..14 s, 15: delta = -1/8 if set, else +1/8.
struct BlockIQ1_S {
  uint16_t d;
  uint8_t qs[32];
  uint16_t qh[8];
};
/// 0:32 qs | 32:16 qh | 48:8 four words w.             y = d * (2s + 1) * (grid + delta)
/// d is spread over the top nibbles of w[0..3], lowest first. s of groups l = 0,1 / 2,3: bits 6*(ib&1) + 3*(l/2).. of
/// w[ib/2]. Nibble l&1 of qh[2*ib + l/2]: bits 0..2 high bits of the grid index, bit 3: delta = -1/8 if set.
struct BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];
  uint16_t scales[4];
};

#pragma pack(pop)

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockMXFP4) == 17);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82);
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110);
static_assert(sizeof(BlockIQ1_S) == 50 && sizeof(BlockIQ1_M) == 56);

/// The uneven steps of IQ4_NL and IQ4_XS.
constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Twice the FP4 (e2m1) values, so that they are integers; code 8 is minus zero.
constexpr int8_t kE2M1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// IQ1: the shift of all grid values of a group, by its delta bit.
constexpr float kIQ1Delta = 0.125f;

}  // namespace fathom
