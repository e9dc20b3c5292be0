// Block formats as kernels take them apart: 32 weights at a time.
//
// A chunk is two runs of 16 neighbouring elements of a row, the two that come out of the low and the high halves of the
// same 16 bytes: 16 * 2 elements in a row for the formats whose block is 32, elements 32 or 64 apart for Q2_K to Q6_K.
// A block has kChunks chunks; chunk `sub` of it covers its elements first(sub) .. +15 and first(sub) + kSecond .. +15.
// A weight of run h is
//   d * scale[h] * (q - kOffset) [- dmin * min[h] if kHasMin]
// with q a signed byte of `q`, four elements in a word, lowest first; if not kTwoScales, scale[1] and min[1] equal
// scale[0] and min[0]. Scales stay whole numbers, as the file has them: sums of products are multiplied with them
// before they become floats.
//
// load() gets the row's planes (weight_layout.h), so that every load is a whole aligned 1 to 16 bytes. In the kernels'
// loops `sub` never changes: what depends on it alone is computed once.
#pragma once

#include "core/quant/blocks.h"
#include "cuda/device.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {

/// Tables of the IQ formats in device memory, at these byte offsets; written by write_grid_tables.
struct GridTables {
  static constexpr int kIQ2XXS = 0;                 ///< [256] 8 magnitudes
  static constexpr int kIQ2XS = kIQ2XXS + 256 * 8;  ///< [512] 8 magnitudes
  static constexpr int kIQ2S = kIQ2XS + 512 * 8;    ///< [1024] 8 magnitudes
  static constexpr int kIQ3XXS = kIQ2S + 1024 * 8;  ///< [256] 4 magnitudes
  static constexpr int kIQ3S = kIQ3XXS + 256 * 4;   ///< [512] 4 magnitudes
  static constexpr int kIQ1 = kIQ3S + 512 * 4;      ///< [2048] 8 signed bytes: 8 * grid + 1
  static constexpr int kBytes = kIQ1 + 2048 * 8;
};

struct Chunk {
  int q[8];
  float d, dmin;
  int scale[2];
  float min[2];  ///< whole numbers

  FATHOM_DEVICE float scale_of(int h) const { return d * static_cast<float>(scale[h]); }
  FATHOM_DEVICE float minimum_of(int h) const { return -dmin * min[h]; }
};

namespace detail {

FATHOM_DEVICE uint4 load16(const uint8_t* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }
FATHOM_DEVICE uint2 load8(const uint8_t* p) { return __ldg(reinterpret_cast<const uint2*>(p)); }
FATHOM_DEVICE uint32_t load4(const uint8_t* p) { return __ldg(reinterpret_cast<const unsigned*>(p)); }
FATHOM_DEVICE uint32_t load2(const uint8_t* p) { return __ldg(reinterpret_cast<const unsigned short*>(p)); }
FATHOM_DEVICE uint32_t load1(const uint8_t* p) { return __ldg(p); }
FATHOM_DEVICE int load_signed(const uint8_t* p) { return __ldg(reinterpret_cast<const int8_t*>(p)); }
FATHOM_DEVICE float half_at(const uint8_t* p) { return half_to_float(static_cast<uint16_t>(load2(p))); }
FATHOM_DEVICE float low_half(uint32_t w) { return half_to_float(static_cast<uint16_t>(w & 0xffffu)); }
FATHOM_DEVICE float high_half(uint32_t w) { return half_to_float(static_cast<uint16_t>(w >> 16)); }
FATHOM_DEVICE uint32_t byte_of(uint32_t w, int i) { return choose_bytes(w, 0, 0x4440u + static_cast<unsigned>(i)); }

FATHOM_DEVICE void set_one_scale(Chunk& c, float d, int scale = 1) {
  c.d = d, c.dmin = 0;
  c.scale[0] = c.scale[1] = scale;
  c.min[0] = c.min[1] = 0;
}
/// Of a file whose minimum is added.
FATHOM_DEVICE void set_minimum(Chunk& c, float minimum) {
  c.dmin = -minimum;
  c.min[0] = c.min[1] = 1;
}
FATHOM_DEVICE void set_two_scales(Chunk& c, float d, int first, int second) {
  c.d = d, c.dmin = 0;
  c.scale[0] = first, c.scale[1] = second;
  c.min[0] = c.min[1] = 0;
}

FATHOM_DEVICE void set_nibbles(Chunk& c, const uint4& w) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    c.q[i] = static_cast<int>(words[i] & 0x0f0f0f0fu);
    c.q[i + 4] = static_cast<int>(words[i] >> 4 & 0x0f0f0f0fu);
  }
}

/// The low four bits of `bits`, bit i in bit 0 of byte i: the products of the magic number do not meet.
FATHOM_DEVICE uint32_t spread_bits(uint32_t bits) { return (bits & 15u) * 0x00204081u & 0x01010101u; }

/// Bit i of `bits` becomes bit 4 of element i.
FATHOM_DEVICE void add_fifth_bits(Chunk& c, uint32_t bits) {
#pragma unroll
  for (int i = 0; i < 8; ++i) c.q[i] |= static_cast<int>(spread_bits(bits >> (4 * i)) << 4);
}

/// Four magnitudes, none zero, negated where the low four bits of `signs` are set: ~m + 1 never carries into the next
/// byte.
FATHOM_DEVICE int with_signs(uint32_t magnitudes, uint32_t signs) {
  const uint32_t ones = spread_bits(signs);
  return static_cast<int>((magnitudes ^ ones * 255u) + ones);
}

/// kEvenSigns[index]: the eighth sign makes their number even.
FATHOM_DEVICE uint32_t even_signs(uint32_t index) {
  index &= 127u;
  return index | (static_cast<uint32_t>(__popc(index)) & 1u) << 7;
}

constexpr uint32_t table_word(const int8_t* table, int i) {
  uint32_t w = 0;
  for (int j = 0; j < 4; ++j) w |= static_cast<uint32_t>(static_cast<uint8_t>(table[4 * i + j])) << (8 * j);
  return w;
}

/// set_nibbles through a table of 16 bytes: four nibbles at a time choose from each half of it by their low three bits,
/// then by the fourth between the two. Selectors count in their low 16 bits alone.
template <uint32_t kT0, uint32_t kT1, uint32_t kT2, uint32_t kT3>
FATHOM_DEVICE void set_looked_up(Chunk& c, const uint4& packed) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = words[i] & 0x77777777u, half = (words[i] >> 1 & 0x44444444u) | 0x32103210u;
    auto four = [&](int by) {
      return choose_bytes(choose_bytes(kT0, kT1, low >> by), choose_bytes(kT2, kT3, low >> by), half >> by);
    };
    const uint32_t a = four(0), b = four(16);  // low, high, low, high nibbles
    c.q[i] = static_cast<int>(choose_bytes(a, b, 0x6420u));
    c.q[i + 4] = static_cast<int>(choose_bytes(a, b, 0x7531u));
  }
}

#define FATHOM_TABLE(t)                                                               \
  ::fathom::cuda::detail::table_word(t, 0), ::fathom::cuda::detail::table_word(t, 1), \
      ::fathom::cuda::detail::table_word(t, 2), ::fathom::cuda::detail::table_word(t, 3)

}  // namespace detail

/// What the kernels ask of a format. kApart: elements between the starts of the two runs of a chunk. kPerScale:
/// neighbouring elements that share a scale.
template <DType kType, bool kWithMin, bool kSecondScale, int kZero, int kApart, int kPerScale> struct FormatTraits {
  static constexpr DType kDType = kType;
  static constexpr bool kIsFloat = false;
  static constexpr WeightLayout kLayout = weight_layout(kType);
  static constexpr int kBlock = kLayout.block_elements;
  static constexpr int kChunks = kBlock / 32;
  static constexpr bool kHasMin = kWithMin;
  static constexpr bool kTwoScales = kSecondScale;
  static constexpr int kOffset = kZero;
  static constexpr int kSecond = kApart;
  static constexpr int kSub = kPerScale;

  /// Start of plane p's entry for `block` in a row.
  template <int kPlane> static FATHOM_DEVICE const uint8_t* at(const uint8_t* row, int n_blocks, int block) {
    constexpr int kBefore = kLayout.bytes_before(kPlane), kBytes = kLayout.planes[kPlane].bytes;
    return row + static_cast<uint64_t>(static_cast<uint32_t>(n_blocks)) * kBefore +
           static_cast<uint64_t>(static_cast<uint32_t>(block)) * kBytes;
  }

  /// First element of a block's chunk.
  static constexpr int first(int sub) {
    if constexpr (kApart == 16) return 32 * sub;
    if constexpr (kApart == 32) return 64 * (sub / 2) + 16 * (sub % 2);  // 16 bytes hold runs of 32-blocks 2g, 2g + 1
    return 128 * (sub / 4) + 32 * (sub / 2 % 2) + 16 * (sub % 2);        // Q6_K: of 32-blocks k and k + 2 of a half
  }
};

// ---- 32-element blocks: one 16-byte load of quants, or two ----

struct Q4_0 : FormatTraits<DType::kQ4_0, false, false, 8, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block)));
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)));
    return r;
  }
};

struct Q4_1 : FormatTraits<DType::kQ4_1, true, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block)));
    const uint32_t dm = detail::load4(at<1>(row, n, block));
    detail::set_one_scale(r, detail::low_half(dm));
    detail::set_minimum(r, detail::high_half(dm));
    return r;
  }
};

struct Q5_0 : FormatTraits<DType::kQ5_0, false, false, 16, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block)));
    detail::add_fifth_bits(r, detail::load4(at<1>(row, n, block)));
    detail::set_one_scale(r, detail::half_at(at<2>(row, n, block)));
    return r;
  }
};

struct Q5_1 : FormatTraits<DType::kQ5_1, true, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block)));
    const uint2 head = detail::load8(at<1>(row, n, block));
    detail::add_fifth_bits(r, head.y);
    detail::set_one_scale(r, detail::low_half(head.x));
    detail::set_minimum(r, detail::high_half(head.x));
    return r;
  }
};

struct Q8_0 : FormatTraits<DType::kQ8_0, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    const uint4 a = detail::load16(at<0>(row, n, block)), b = detail::load16(at<0>(row, n, block) + 16);
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) r.q[i] = static_cast<int>(words[i]);
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)));
    return r;
  }
};

struct IQ4_NL : FormatTraits<DType::kIQ4_NL, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_looked_up<FATHOM_TABLE(kIQ4Values)>(r, detail::load16(at<0>(row, n, block)));
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)));
    return r;
  }
};

struct MXFP4 : FormatTraits<DType::kMXFP4, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int, const std::byte*) {
    Chunk r;
    detail::set_looked_up<FATHOM_TABLE(kE2M1Doubled)>(r, detail::load16(at<0>(row, n, block)));
    const uint32_t e = detail::load1(at<1>(row, n, block));
    const uint32_t bits = e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : e << 23;
    detail::set_one_scale(r, 0.5F * __uint_as_float(bits));  // half, because the table is doubled
    return r;
  }
};

// ---- K formats: 256 elements in eight chunks ----

struct Q2_K : FormatTraits<DType::kQ2_K, true, true, 0, 32, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    const int half = sub / 4, pair = sub / 2 % 2, side = sub % 2;
    const uint4 packed = detail::load16(at<0>(row, n, block) + half * 32 + side * 16);
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r.q[i] = static_cast<int>(words[i] >> (4 * pair) & 0x03030303u);
      r.q[i + 4] = static_cast<int>(words[i] >> (4 * pair + 2) & 0x03030303u);
    }
    const uint32_t scales = detail::load4(at<1>(row, n, block) + half * 8 + pair * 4) >> (8 * side);
    const uint32_t dd = detail::load4(at<2>(row, n, block));
    r.d = detail::low_half(dd), r.dmin = detail::high_half(dd);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      r.scale[h] = static_cast<int>(scales >> (16 * h) & 15u);
      r.min[h] = static_cast<float>(scales >> (16 * h + 4) & 15u);
    }
    return r;
  }
};

struct Q3_K : FormatTraits<DType::kQ3_K, false, true, 4, 32, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    const int half = sub / 4, pair = sub / 2 % 2, side = sub % 2;
    const uint4 packed = detail::load16(at<0>(row, n, block) + half * 32 + side * 16);
    const uint4 mask = detail::load16(at<1>(row, n, block) + side * 16);
    const uint32_t low[4] = {packed.x, packed.y, packed.z, packed.w}, high[4] = {mask.x, mask.y, mask.z, mask.w};
    const int bit = half * 4 + pair * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r.q[i] = static_cast<int>((low[i] >> (4 * pair) & 0x03030303u) | (high[i] >> bit & 0x01010101u) << 2);
      r.q[i + 4] =
          static_cast<int>((low[i] >> (4 * pair + 2) & 0x03030303u) | (high[i] >> (bit + 1) & 0x01010101u) << 2);
    }
    const uint8_t* scales = at<2>(row, n, block);
    const uint32_t fours = detail::load4(scales + 4 * pair) >> (4 * half),
                   twos = detail::load4(scales + 8) >> (2 * (2 * half + pair));
    auto scale = [&](int h) {
      const int at_byte = 8 * (2 * h + side);
      return static_cast<int>((fours >> at_byte & 15u) | (twos >> at_byte & 3u) << 4) - 32;
    };
    detail::set_two_scales(r, detail::half_at(at<3>(row, n, block)), scale(0), scale(1));
    return r;
  }
};

namespace detail {

/// Scales and minima of the sub-blocks 2g and 2g + 1 from the header of Q4_K and Q5_K: d, dmin, 12 bytes of six-bit
/// pairs. All four in the bytes of a word at once: the first four sub-blocks' lie in the low six bits of the bytes
/// 0 .. 7, the others' low four in the halves of the bytes 8 .. 11 and high two on top of the first ones'.
FATHOM_DEVICE void set_six_bit_scales(Chunk& c, const uint4& head, int g) {
  const uint32_t two = g % 2 == 0 ? 0x5410u : 0x7632u;  // the bytes of 2g and 2g + 1 of both words
  const uint32_t pairs = choose_bytes(head.y, head.z, two), fours = choose_bytes(head.w, head.w >> 4, two);
  const bool is_low = g < 2;
  const uint32_t top = (pairs & (is_low ? 0x3f3f3f3fu : 0xc0c0c0c0u)) >> (is_low ? 0 : 2);
  const uint32_t all = top | (fours & (is_low ? 0u : 0x0f0f0f0fu));
  c.d = low_half(head.x), c.dmin = high_half(head.x);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    c.scale[h] = static_cast<int>(byte_of(all, h));
    c.min[h] = static_cast<float>(byte_of(all, 2 + h));
  }
}

}  // namespace detail

struct Q4_K : FormatTraits<DType::kQ4_K, true, true, 0, 32, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block) + 16 * sub));
    detail::set_six_bit_scales(r, detail::load16(at<1>(row, n, block)), sub / 2);
    return r;
  }
};

struct Q5_K : FormatTraits<DType::kQ5_K, true, true, 0, 32, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block) + 16 * sub));
    const uint4 fifth = detail::load16(at<1>(row, n, block) + 16 * (sub % 2));
    const uint32_t words[4] = {fifth.x, fifth.y, fifth.z, fifth.w};
    const unsigned by = static_cast<unsigned>(sub / 2 * 2 + 28) % 32;  // bit 2g of every byte goes to its bit 4
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t w = __funnelshift_r(words[i], words[i], by);
      r.q[i] |= static_cast<int>(w & 0x10101010u);
      r.q[i + 4] |= static_cast<int>(w >> 1 & 0x10101010u);
    }
    detail::set_six_bit_scales(r, detail::load16(at<2>(row, n, block)), sub / 2);
    return r;
  }
};

struct Q6_K : FormatTraits<DType::kQ6_K, false, true, 32, 64, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    const int half = sub / 4, k = sub / 2 % 2, side = sub % 2;
    detail::set_nibbles(r, detail::load16(at<0>(row, n, block) + 16 * sub));
    const uint4 upper = detail::load16(at<1>(row, n, block) + half * 32 + side * 16);
    const uint32_t words[4] = {upper.x, upper.y, upper.z, upper.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r.q[i] |= static_cast<int>(words[i] << (4 - 2 * k) & 0x30303030u);
      r.q[i + 4] |= static_cast<int>(words[i] >> (2 * k) & 0x30303030u);
    }
    const uint8_t* scales = at<2>(row, n, block) + half * 8 + k * 2 + side;
    detail::set_two_scales(r, detail::half_at(at<3>(row, n, block)), detail::load_signed(scales),
                           detail::load_signed(scales + 4));
    return r;
  }
};

// ---- IQ formats: a chunk is a sub-block of 32 ----

struct IQ4_XS : FormatTraits<DType::kIQ4_XS, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte*) {
    Chunk r;
    detail::set_looked_up<FATHOM_TABLE(kIQ4Values)>(r, detail::load16(at<0>(row, n, block) + 16 * sub));
    const uint2 head = detail::load8(at<1>(row, n, block));  // d, scales_h; scales_l
    const int scale = static_cast<int>((head.y >> (4 * sub) & 15u) | (head.x >> (16 + 2 * sub) & 3u) << 4) - 32;
    detail::set_one_scale(r, detail::low_half(head.x), scale);
    return r;
  }
};

namespace detail {

/// Eight magnitudes of a grid of 64-bit entries under eight signs, to words 2l and 2l + 1.
FATHOM_DEVICE void set_group8(Chunk& c, int l, const std::byte* grid, uint32_t index, uint32_t signs) {
  const uint2 magnitudes = load8(reinterpret_cast<const uint8_t*>(grid) + 8 * index);
  c.q[2 * l] = with_signs(magnitudes.x, signs);
  c.q[2 * l + 1] = with_signs(magnitudes.y, signs >> 4);
}
FATHOM_DEVICE void set_group4(Chunk& c, int k, const std::byte* grid, uint32_t index, uint32_t signs) {
  c.q[k] = with_signs(load4(reinterpret_cast<const uint8_t*>(grid) + 4 * index), signs);
}
/// Eight of 8 * grid + 1, or of 8 * grid - 1. All bytes are odd; their top bits are set aside so that no borrow passes.
FATHOM_DEVICE void set_ternary8(Chunk& c, int l, const std::byte* grids, uint32_t index, bool negative) {
  const uint2 plus = load8(reinterpret_cast<const uint8_t*>(grids + GridTables::kIQ1) + 8 * index);
  auto minus_two = [](uint32_t w) { return ((w | 0x80808080u) - 0x02020202u) ^ (~w & 0x80808080u); };
  c.q[2 * l] = static_cast<int>(negative ? minus_two(plus.x) : plus.x);
  c.q[2 * l + 1] = static_cast<int>(negative ? minus_two(plus.y) : plus.y);
}

}  // namespace detail

struct IQ2_XXS : FormatTraits<DType::kIQ2_XXS, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint2 w = detail::load8(at<0>(row, n, block) + 8 * sub);  // indices; signs and scale
#pragma unroll
    for (int l = 0; l < 4; ++l)
      detail::set_group8(r, l, grids + GridTables::kIQ2XXS, detail::byte_of(w.x, l),
                         detail::even_signs(w.y >> (7 * l)));
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)) * 0.125F, static_cast<int>(2 * (w.y >> 28) + 1));
    return r;
  }
};

struct IQ2_XS : FormatTraits<DType::kIQ2_XS, false, true, 0, 16, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint2 w = detail::load8(at<0>(row, n, block) + 8 * sub);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const uint32_t q = (l < 2 ? w.x : w.y) >> (16 * (l % 2)) & 0xffffu;
      detail::set_group8(r, l, grids + GridTables::kIQ2XS, q & 511u, detail::even_signs(q >> 9));
    }
    const uint32_t s = detail::load1(at<1>(row, n, block) + sub);
    detail::set_two_scales(r, detail::half_at(at<2>(row, n, block)) * 0.125F, static_cast<int>(2 * (s & 15u) + 1),
                           static_cast<int>(2 * (s >> 4) + 1));
    return r;
  }
};

struct IQ2_S : FormatTraits<DType::kIQ2_S, false, true, 0, 16, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint8_t* quants = at<0>(row, n, block) + 4 * sub;  // 32 bytes of indices, 32 of signs
    const uint8_t* extra = at<1>(row, n, block) + sub;       // 8 bytes of high bits, 8 of scales
    const uint32_t indices = detail::load4(quants), signs = detail::load4(quants + 32), high = detail::load1(extra),
                   s = detail::load1(extra + 8);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      detail::set_group8(r, l, grids + GridTables::kIQ2S, detail::byte_of(indices, l) | (high >> (2 * l) & 3u) << 8,
                         detail::byte_of(signs, l));
    }
    detail::set_two_scales(r, detail::half_at(at<2>(row, n, block)) * 0.125F, static_cast<int>(2 * (s & 15u) + 1),
                           static_cast<int>(2 * (s >> 4) + 1));
    return r;
  }
};

struct IQ3_XXS : FormatTraits<DType::kIQ3_XXS, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint2 indices = detail::load8(at<0>(row, n, block) + 8 * sub);  // 64 bytes of indices, 32 of signs and scales
    const uint32_t a = detail::load4(at<0>(row, n, block) + 64 + 4 * sub);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      detail::set_group4(r, k, grids + GridTables::kIQ3XXS, detail::byte_of(k < 4 ? indices.x : indices.y, k % 4),
                         detail::even_signs(a >> (7 * (k / 2))) >> (4 * (k % 2)));
    }
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)) * 0.25F, static_cast<int>(2 * (a >> 28) + 1));
    return r;
  }
};

struct IQ3_S : FormatTraits<DType::kIQ3_S, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint2 indices = detail::load8(at<0>(row, n, block) + 8 * sub);
    const uint8_t* extra = at<1>(row, n, block);  // 8 bytes of high bits, 32 of signs
    const uint32_t high = detail::load1(extra + sub), signs = detail::load4(extra + 8 + 4 * sub);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t index = detail::byte_of(k < 4 ? indices.x : indices.y, k % 4) | (high >> k & 1u) << 8;
      detail::set_group4(r, k, grids + GridTables::kIQ3S, index, signs >> (4 * k));
    }
    const uint32_t s = detail::load4(at<2>(row, n, block)) >> (4 * sub) & 15u;
    detail::set_one_scale(r, detail::half_at(at<3>(row, n, block)), static_cast<int>(2 * s + 1));
    return r;
  }
};

struct IQ1_S : FormatTraits<DType::kIQ1_S, false, false, 0, 16, 32> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint8_t* quants = at<0>(row, n, block);  // 32 bytes of indices, 8 words of high bits
    const uint32_t indices = detail::load4(quants + 4 * sub), high = detail::load2(quants + 32 + 2 * sub);
#pragma unroll
    for (int l = 0; l < 4; ++l)
      detail::set_ternary8(r, l, grids, detail::byte_of(indices, l) | (high >> (3 * l) & 7u) << 8,
                           (high & 0x8000u) != 0);
    detail::set_one_scale(r, detail::half_at(at<1>(row, n, block)) * 0.125F,
                          static_cast<int>(2 * (high >> 12 & 7u) + 1));
    return r;
  }
};

struct IQ1_M : FormatTraits<DType::kIQ1_M, false, true, 0, 16, 16> {
  static FATHOM_DEVICE Chunk load(const uint8_t* row, int n, int block, int sub, const std::byte* grids) {
    Chunk r;
    const uint8_t* quants = at<0>(row, n, block);  // 32 bytes of indices, 16 of high bits
    const uint32_t indices = detail::load4(quants + 4 * sub), high = detail::load2(quants + 32 + 2 * sub);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const uint32_t nibble = high >> (4 * l) & 15u;
      detail::set_ternary8(r, l, grids, detail::byte_of(indices, l) | (nibble & 7u) << 8, (nibble & 8u) != 0);
    }
    const uint2 w = detail::load8(at<1>(row, n, block));  // four words; d in their top nibbles
    const uint32_t d_bits = (w.x >> 12 & 0xfu) | (w.x >> 24 & 0xf0u) | (w.y >> 4 & 0xf00u) | (w.y >> 16 & 0xf000u);
    const float d = half_to_float(static_cast<uint16_t>(d_bits));
    const uint32_t scales = (sub < 4 ? w.x : w.y) >> (16 * (sub / 2 % 2) + 6 * (sub % 2));
    detail::set_two_scales(r, d * 0.125F, static_cast<int>(2 * (scales & 7u) + 1),
                           static_cast<int>(2 * (scales >> 3 & 7u) + 1));
    return r;
  }
};

// ---- plain elements: chunks of 16 bytes ----

template <DType kType, int kElementBytes> struct FloatTraits {
  static constexpr DType kDType = kType;
  static constexpr bool kIsFloat = true;
  static constexpr int kBlock = 1;
  static constexpr int kPerChunk = 16 / kElementBytes;
};

struct F32 : FloatTraits<DType::kF32, 4> {
  static FATHOM_DEVICE float element(const uint4& w, int i) {
    return __uint_as_float(i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w);
  }
};
namespace detail {
FATHOM_DEVICE uint16_t half_word(const uint4& w, int i) {
  const uint32_t word = i < 2 ? w.x : i < 4 ? w.y : i < 6 ? w.z : w.w;
  return static_cast<uint16_t>(word >> (16 * (i % 2)));
}
}  // namespace detail
struct F16 : FloatTraits<DType::kF16, 2> {
  static FATHOM_DEVICE float element(const uint4& w, int i) { return half_to_float(detail::half_word(w, i)); }
};
struct BF16 : FloatTraits<DType::kBF16, 2> {
  static FATHOM_DEVICE float element(const uint4& w, int i) { return bf16_to_float(detail::half_word(w, i)); }
};
struct F8_E4M3 : FloatTraits<DType::kF8_E4M3, 1> {
  static FATHOM_DEVICE float element(const uint4& w, int i) {
    return fp8_to_float(static_cast<uint8_t>(detail::half_word(w, i / 2) >> (8 * (i % 2))));
  }
};

}  // namespace fathom::cuda
