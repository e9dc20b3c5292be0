// One weight at a time from any stored type: the 32 lanes of a warp decode 32 neighbours together. For kernels whose
// time is not in decoding: lookups, the small projections around attention, cache rows. Formulas and byte layouts:
// core/quant/blocks.h.
#pragma once

#include <utility>

#include "core/dtype.h"
#include "core/error.h"
#include "cuda/codebooks.h"
#include "cuda/device.h"

namespace fathom::cuda {

using Bytes = const unsigned char*;

FATHOM_DEVICE uint32_t load_u16(Bytes p) { return *reinterpret_cast<const uint16_t*>(p); }  // at an even address
FATHOM_DEVICE uint32_t load_u32(Bytes p) { return load_u16(p) | load_u16(p + 2) << 16; }    // likewise
FATHOM_DEVICE float load_half(Bytes p) { return half_to_float(static_cast<uint16_t>(load_u16(p))); }

/// The uneven steps of IQ4_NL and IQ4_XS (kIQ4Values), a byte each.
FATHOM_DEVICE float iq4_value(int q) {
  const uint64_t eight = q < 8 ? 0xF6EADDCFBFAD9881ULL : 0x7159453526190D01ULL;
  return static_cast<float>(static_cast<signed char>(eight >> (8 * (q & 7)) & 255));
}

/// Scale and minimum of sub-block j (0..7) of Q4_K and Q5_K, each 0..63. The same loads for every j: a branch would
/// keep the compiler from having those of several weights under way.
FATHOM_DEVICE void scale_and_min(Bytes packed, int j, int& scale, int& minimum) {
  const int a = packed[j % 4], b = packed[4 + j % 4], c = packed[8 + j % 4];
  scale = j < 4 ? a & 63 : (c & 15) | (a >> 6) << 4;
  minimum = j < 4 ? b & 63 : c >> 4 | (b >> 6) << 4;
}

/// Sign pattern with an even number of minus signs: bits 0..6 are the index, bit 7 makes the count even.
FATHOM_DEVICE uint32_t even_signs(uint32_t index) { return index | (__popc(index) & 1) << 7; }

FATHOM_DEVICE float signed_magnitude(uint32_t magnitude, bool is_negative) {
  return is_negative ? -static_cast<float>(magnitude) : static_cast<float>(magnitude);
}

/// Element 32 * sub + lane of a block of 256.
template <DType kType> FATHOM_DEVICE float super_element(Bytes b, int sub, int lane, const Codebooks& books) {
  const int half = sub / 4, s = sub % 4, group = lane / 8, j = lane % 8;  // group: of 8 elements, IQ formats
  if constexpr (kType == DType::kQ2_K) {
    const int scale = b[2 * sub + lane / 16], q = b[16 + half * 32 + lane] >> (2 * s) & 3;
    return load_half(b + 80) * static_cast<float>((scale & 15) * q) -
           load_half(b + 82) * static_cast<float>(scale >> 4);
  } else if constexpr (kType == DType::kQ3_K) {
    const int i = 2 * sub + lane / 16;
    const int low = i < 8 ? b[96 + i] & 15 : b[96 + i - 8] >> 4, high = b[104 + i % 4] >> (2 * (i / 4)) & 3;
    const int q = (b[32 + half * 32 + lane] >> (2 * s) & 3) + 4 * (b[lane] >> (half * 4 + s) & 1) - 4;
    return load_half(b + 108) * static_cast<float>(((low | high << 4) - 32) * q);
  } else if constexpr (kType == DType::kQ4_K) {
    int scale, minimum;
    scale_and_min(b + 4, sub, scale, minimum);
    const int q = b[16 + sub / 2 * 32 + lane] >> (4 * (sub % 2)) & 15;
    return load_half(b) * static_cast<float>(scale * q) - load_half(b + 2) * static_cast<float>(minimum);
  } else if constexpr (kType == DType::kQ5_K) {
    int scale, minimum;
    scale_and_min(b + 4, sub, scale, minimum);
    const int q = (b[48 + sub / 2 * 32 + lane] >> (4 * (sub % 2)) & 15) | (b[16 + lane] >> sub & 1) << 4;
    return load_half(b) * static_cast<float>(scale * q) - load_half(b + 2) * static_cast<float>(minimum);
  } else if constexpr (kType == DType::kQ6_K) {
    const int low = b[half * 64 + (s & 1) * 32 + lane] >> (s < 2 ? 0 : 4) & 15,
              high = b[128 + half * 32 + lane] >> (2 * s) & 3;
    const int scale = static_cast<signed char>(b[192 + 2 * sub + lane / 16]);
    return load_half(b + 208) * static_cast<float>(scale * ((low | high << 4) - 32));
  } else if constexpr (kType == DType::kIQ4_XS) {
    const int scale = (b[4 + sub / 2] >> (4 * (sub & 1)) & 15) | static_cast<int>(load_u16(b + 2) >> (2 * sub) & 3)
                                                                     << 4;
    return load_half(b) * static_cast<float>(scale - 32) *
           iq4_value(b[8 + 16 * sub + lane % 16] >> (lane / 16 * 4) & 15);
  } else if constexpr (kType == DType::kIQ2_XXS) {
    const Bytes p = b + 2 + 8 * sub;
    const uint32_t a = load_u32(p + 4);
    const uint32_t magnitude = static_cast<uint32_t>(books.iq2_xxs[p[group]] >> (8 * j) & 255);
    const float scale = load_half(b) * (0.5F + static_cast<float>(a >> 28)) * 0.25F;
    return scale * signed_magnitude(magnitude, even_signs(a >> (7 * group) & 127) >> j & 1);
  } else if constexpr (kType == DType::kIQ2_XS) {
    const uint32_t q = load_u16(b + 2 + 2 * (4 * sub + group));
    const uint32_t magnitude = static_cast<uint32_t>(books.iq2_xs[q & 511] >> (8 * j) & 255);
    const float scale = load_half(b) * (0.5F + static_cast<float>(b[66 + sub] >> (4 * (group / 2)) & 15)) * 0.25F;
    return scale * signed_magnitude(magnitude, even_signs(q >> 9) >> j & 1);
  } else if constexpr (kType == DType::kIQ2_S) {
    const int index = b[2 + 4 * sub + group] | (b[66 + sub] >> (2 * group) & 3) << 8;
    const uint32_t magnitude = static_cast<uint32_t>(books.iq2_s[index] >> (8 * j) & 255);
    const float scale = load_half(b) * (0.5F + static_cast<float>(b[74 + sub] >> (4 * (group / 2)) & 15)) * 0.25F;
    return scale * signed_magnitude(magnitude, b[34 + 4 * sub + group] >> j & 1);
  } else if constexpr (kType == DType::kIQ3_XXS) {
    const uint32_t a = load_u32(b + 66 + 4 * sub);
    const uint32_t magnitude = books.iq3_xxs[b[2 + 8 * sub + lane / 4]] >> (8 * (lane % 4)) & 255;
    const float scale = load_half(b) * (0.5F + static_cast<float>(a >> 28)) * 0.5F;
    return scale * signed_magnitude(magnitude, even_signs(a >> (7 * group) & 127) >> j & 1);
  } else if constexpr (kType == DType::kIQ3_S) {
    const int k = lane / 4, index = b[2 + 8 * sub + k] | (b[66 + sub] >> k & 1) << 8;
    const uint32_t magnitude = books.iq3_s[index] >> (8 * (lane % 4)) & 255;
    const float scale = load_half(b) * static_cast<float>(1 + 2 * (b[106 + sub / 2] >> (4 * (sub & 1)) & 15));
    return scale * signed_magnitude(magnitude, b[74 + 4 * sub + group] >> j & 1);
  } else if constexpr (kType == DType::kIQ1_S) {
    const uint32_t qh = load_u16(b + 34 + 2 * sub);
    const uint32_t index = b[2 + 4 * sub + group] | (qh >> (3 * group) & 7) << 8;
    const float grid = static_cast<float>(static_cast<signed char>(books.iq1[index] >> (8 * j) & 255));
    return load_half(b) * static_cast<float>(2 * (qh >> 12 & 7) + 1) * (grid + ((qh & 0x8000) != 0 ? -0.125F : 0.125F));
  } else {
    static_assert(kType == DType::kIQ1_M, "a type that weights can have");
    const Bytes words = b + 48;
    const uint32_t d = load_u16(words) >> 12 | (load_u16(words + 2) >> 8 & 0xf0) | (load_u16(words + 4) >> 4 & 0xf00) |
                       (load_u16(words + 6) & 0xf000);
    const uint32_t scale = load_u16(words + 2 * (sub / 2)) >> (6 * (sub & 1) + 3 * (group / 2)) & 7;
    const uint32_t high = b[32 + 2 * sub + group / 2] >> (4 * (group & 1)) & 15;
    const uint32_t index = b[4 * sub + group] | (high & 7) << 8;
    const float grid = static_cast<float>(static_cast<signed char>(books.iq1[index] >> (8 * j) & 255));
    return half_to_float(static_cast<uint16_t>(d)) * static_cast<float>(2 * scale + 1) *
           (grid + ((high & 8) != 0 ? -0.125F : 0.125F));
  }
}

/// Bytes of 32 elements (of a block of 256 for the types that have those).
template <DType kType> constexpr int block_bytes() {
  switch (kType) {
    case DType::kF32: return 128;
    case DType::kF16:
    case DType::kBF16: return 64;
    case DType::kF8_E4M3: return 32;
    case DType::kQ4_0:
    case DType::kIQ4_NL: return 18;
    case DType::kQ4_1: return 20;
    case DType::kQ5_0: return 22;
    case DType::kQ5_1: return 24;
    case DType::kQ8_0: return 34;
    case DType::kMXFP4: return 17;
    case DType::kQ2_K: return 84;
    case DType::kQ3_K:
    case DType::kIQ3_S: return 110;
    case DType::kQ4_K: return 144;
    case DType::kQ5_K: return 176;
    case DType::kQ6_K: return 210;
    case DType::kIQ4_XS: return 136;
    case DType::kIQ2_XXS: return 66;
    case DType::kIQ2_XS: return 74;
    case DType::kIQ2_S: return 82;
    case DType::kIQ3_XXS: return 98;
    case DType::kIQ1_S: return 50;
    case DType::kIQ1_M: return 56;
    default: return 0;
  }
}

/// Element 32 * group + lane of a row. Rows begin at even addresses (floats: at their own alignment).
template <DType kType> FATHOM_DEVICE float element(Bytes row, int group, int lane, const Codebooks& books) {
  const Bytes b = row + static_cast<int64_t>(block_bytes<kType>()) * group;  // types of 32
  const int shift = lane / 16 * 4;
  if constexpr (kType == DType::kF32) {
    return reinterpret_cast<const float*>(b)[lane];
  } else if constexpr (kType == DType::kF16) {
    return half_to_float(reinterpret_cast<const uint16_t*>(b)[lane]);
  } else if constexpr (kType == DType::kBF16) {
    return bf16_to_float(reinterpret_cast<const uint16_t*>(b)[lane]);
  } else if constexpr (kType == DType::kF8_E4M3) {
    return fp8_to_float(b[lane]);
  } else if constexpr (kType == DType::kQ8_0) {
    return load_half(b) * static_cast<float>(static_cast<signed char>(b[2 + lane]));
  } else if constexpr (kType == DType::kQ4_0) {
    return load_half(b) * static_cast<float>((b[2 + lane % 16] >> shift & 15) - 8);
  } else if constexpr (kType == DType::kQ4_1) {
    return load_half(b) * static_cast<float>(b[4 + lane % 16] >> shift & 15) + load_half(b + 2);
  } else if constexpr (kType == DType::kQ5_0) {
    const int fifth = static_cast<int>(load_u32(b + 2) >> lane & 1) << 4;
    return load_half(b) * static_cast<float>(((b[6 + lane % 16] >> shift & 15) | fifth) - 16);
  } else if constexpr (kType == DType::kQ5_1) {
    const int fifth = static_cast<int>(load_u32(b + 4) >> lane & 1) << 4;
    return load_half(b) * static_cast<float>((b[8 + lane % 16] >> shift & 15) | fifth) + load_half(b + 2);
  } else if constexpr (kType == DType::kIQ4_NL) {
    return load_half(b) * iq4_value(b[2 + lane % 16] >> shift & 15);
  } else if constexpr (kType == DType::kMXFP4) {
    const int q = b[1 + lane % 16] >> shift & 15;
    const uint32_t e = b[0];  // the scale is 2^(e - 127), 255 NaN; half of it because doubled values are integers
    const float half_scale = __uint_as_float(e == 255 ? 0x7fc00000U : e < 2 ? 0x00200000U << e : (e - 1) << 23);
    const float doubled = static_cast<float>(0x0C08060403020100ULL >> (8 * (q & 7)) & 255);
    return half_scale * (q < 8 ? doubled : -doubled);
  } else {
    return super_element<kType>(row + static_cast<int64_t>(block_bytes<kType>()) * (group / 8), group % 8, lane, books);
  }
}

/// Types whose four_elements are more than four single ones.
constexpr bool decodes_fours(DType type) {
  return type == DType::kQ8_0 || type == DType::kQ4_K || type == DType::kQ5_K || type == DType::kQ6_K;
}

/// Elements i .. i + 3 of a row, i a multiple of 4: of the types that attention's weights mostly have with a fraction
/// of the work of four single ones. Rows of Q4_K, Q5_K and FP8 begin at multiples of 4.
template <DType kType> FATHOM_DEVICE float4 four_elements(Bytes row, int i, const Codebooks& books) {
  auto word_at = [](Bytes p) { return *reinterpret_cast<const uint32_t*>(p); };
  auto byte = [](uint32_t w, int at) { return static_cast<int>(w >> (8 * at) & 255); };
  auto of = [](auto&& value) { return make_float4(value(0), value(1), value(2), value(3)); };
  if constexpr (kType == DType::kF8_E4M3) {
    const uint32_t w = word_at(row + i);
    return of([&](int at) { return fp8_to_float(static_cast<uint8_t>(byte(w, at))); });
  } else if constexpr (kType == DType::kQ8_0) {
    const Bytes b = row + static_cast<int64_t>(34) * (i / 32);
    const uint32_t q = load_u32(b + 2 + i % 32);
    const float d = load_half(b);
    return of([&](int at) { return d * static_cast<float>(static_cast<signed char>(byte(q, at))); });
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    constexpr bool kFifth = kType == DType::kQ5_K;
    const Bytes b = row + static_cast<int64_t>(kFifth ? 176 : 144) * (i / 256);
    const int sub = i % 256 / 32, l = i % 32;
    uint32_t q = word_at(b + (kFifth ? 48 : 16) + sub / 2 * 32 + l) >> (4 * (sub % 2)) & 0x0f0f0f0fU;
    if constexpr (kFifth) q |= (word_at(b + 16 + l) >> sub & 0x01010101U) << 4;
    const uint32_t head = word_at(b);
    int scale, minimum;
    scale_and_min(b + 4, sub, scale, minimum);
    const float d = half_to_float(static_cast<uint16_t>(head & 0xffffU)),
                m = half_to_float(static_cast<uint16_t>(head >> 16)) * static_cast<float>(minimum);
    return of([&](int at) { return d * static_cast<float>(scale * byte(q, at)) - m; });
  } else if constexpr (kType == DType::kQ6_K) {
    const Bytes b = row + static_cast<int64_t>(210) * (i / 256);
    const int half = i % 256 / 128, s = i % 128 / 32, l = i % 32;
    const uint32_t q = (load_u32(b + half * 64 + (s & 1) * 32 + l) >> (s < 2 ? 0 : 4) & 0x0f0f0f0fU) |
                       (load_u32(b + 128 + half * 32 + l) >> (2 * s) & 0x03030303U) << 4;
    const int scale = static_cast<signed char>(b[192 + 8 * half + 2 * s + l / 16]);
    const float d = load_half(b + 208);
    return of([&](int at) { return d * static_cast<float>(scale * (byte(q, at) - 32)); });
  } else {
    return of([&](int at) { return element<kType>(row, (i + at) / 32, (i + at) % 32, books); });
  }
}

template <DType kType> struct TypeTag { static constexpr DType value = kType; };

template <DType... kTypes> struct Types {};
using WeightTypes = Types<DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ4_0, DType::kQ4_1,
                          DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,
                          DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kIQ2_XXS, DType::kIQ2_XS,
                          DType::kIQ2_S, DType::kIQ3_XXS, DType::kIQ3_S, DType::kIQ1_S, DType::kIQ1_M, DType::kMXFP4>;
using CacheTypes = Types<DType::kF32, DType::kF16, DType::kBF16, DType::kF8_E4M3, DType::kQ8_0>;

/// Calls fn(TypeTag<type>()) for a type of the list.
template <DType... kTypes, typename Fn> void with_type(Types<kTypes...>, DType type, Fn&& fn) {
  const bool found = ((type == kTypes ? (fn(TypeTag<kTypes>()), true) : false) || ...);
  FATHOM_CHECK(found, "a type without kernels");
}
template <typename Fn> void with_weight_type(DType type, Fn&& fn) { with_type(WeightTypes(), type, fn); }
template <typename Fn> void with_cache_type(DType type, Fn&& fn) { with_type(CacheTypes(), type, fn); }

// ---- sums and largest values over a warp, in every lane ----

FATHOM_DEVICE float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

FATHOM_DEVICE float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, offset));
  return x;
}

}  // namespace fathom::cuda
