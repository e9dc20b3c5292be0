// From blocks of kRows weight rows to a panel, for the formats that deserve better than decoding row by row:
// unpack(format, rows, offset, n, panel, ahead) takes n blocks of each row from rows[i] + offset on.
//
// Written once for all instruction sets: FATHOM_ISA/unpack.h includes this after defining what it works with (Bytes,
// Floats, transpose32, low_nibbles ...). Packed rows are transposed first and taken apart afterwards, 4 bytes of every
// row in a vector; layouts: core/quant/blocks.h. `ahead` gets its turn between the parts.

namespace fathom::cpu::FATHOM_ISA {

/// 16 bytes of nibbles at rows[i] + offset: low nibbles are groups 0..3 of a block of 32, high nibbles 4..7.
static inline void nibble_groups(const uint8_t* const* rows, int64_t offset, Bytes* out) {
  Bytes packed[4];
  transpose16(rows, offset, packed);
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    out[g] = low_nibbles(packed[g]);
    out[g + 4] = high_nibbles(packed[g]);
  }
}

static inline void store_groups(uint8_t (*to)[kPanelBytes], const Bytes* groups) {
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) store(to[g], groups[g]);
}

/// Any other format: decode row by row, then transpose.
template <typename Format>
static inline void unpack(Format, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  constexpr int kScales = Format::kElements / Format::kSub;
  constexpr int kPart = (kUnpackLines<Format> + kRows - 1) / kRows;
  alignas(64) uint8_t u[kRows][Format::kElements];
  const uint8_t* starts[kRows];
  for (int i = 0; i < kRows; ++i) starts[i] = u[i];
  const Bytes flip = splat8(Format::kMaxU == 255 ? kFullRangeOffset ^ 128 : 0);
  for (int block = 0; block < n; ++block, offset += Format::kBytes) {
    for (int i = 0; i < kRows; ++i) {
      ahead.lines<kPart>();
      float scale[kScales], min[kScales];
      decode(*reinterpret_cast<const typename Format::Block*>(rows[i] + offset), u[i], scale, min);
      for (int s = 0; s < kScales; ++s) {
        panel.scale[block * kScales + s][i] = scale[s];
        if constexpr (Format::kHasMin) panel.min[block * kScales + s][i] = min[s];
      }
    }
    for (int part = 0; part < Format::kElements / 32; ++part) {
      Bytes out[8];
      transpose32(starts, part * 32, out);
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) out[g] = bit_xor(out[g], flip);
      store_groups(panel.u + (block * Format::kElements / 32 + part) * 8, out);
    }
  }
}

static inline void unpack(Q8_0, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes flip = splat8(kFullRangeOffset);
  for (int block = 0; block < n; ++block, offset += Q8_0::kBytes) {
    ahead.lines<kUnpackLines<Q8_0>>();
    Bytes u[8];
    transpose32(rows, offset + 2, u);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) u[g] = bit_xor(u[g], flip);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], low_halves(gather_first(rows, offset)));
  }
}

static inline void unpack(Q4_0, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  for (int block = 0; block < n; ++block, offset += Q4_0::kBytes) {
    ahead.lines<kUnpackLines<Q4_0>>();
    Bytes u[8];
    nibble_groups(rows, offset + 2, u);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], low_halves(gather_first(rows, offset)));
  }
}

static inline void unpack(Q4_1, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  for (int block = 0; block < n; ++block, offset += Q4_1::kBytes) {
    ahead.lines<kUnpackLines<Q4_1>>();
    Bytes u[8];
    nibble_groups(rows, offset + 4, u);
    store_groups(panel.u + 8 * block, u);
    const Bytes header = gather_first(rows, offset);
    store(panel.scale[block], low_halves(header));
    store(panel.min[block], high_halves(header));
  }
}

static inline void unpack(Q5_0, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  for (int block = 0; block < n; ++block, offset += Q5_0::kBytes) {
    ahead.lines<kUnpackLines<Q5_0>>();
    Bytes u[8], header[4];
    nibble_groups(rows, offset + 6, u);
    transpose16(rows, offset, header);  // d, low half of the bits; high half
    add_fifth_bits(bit_or(shift_right32(header[0], 16), shift_left32(header[1], 16)), u);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], low_halves(header[0]));
  }
}

static inline void unpack(Q5_1, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  for (int block = 0; block < n; ++block, offset += Q5_1::kBytes) {
    ahead.lines<kUnpackLines<Q5_1>>();
    Bytes u[8], header[4];
    nibble_groups(rows, offset + 8, u);
    transpose16(rows, offset, header);  // d, m; bits
    add_fifth_bits(header[1], u);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], low_halves(header[0]));
    store(panel.min[block], high_halves(header[0]));
  }
}

static inline void unpack(IQ4_NL, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes table = lookup_table(kIQ4Values, kFullRangeOffset);
  for (int block = 0; block < n; ++block, offset += IQ4_NL::kBytes) {
    ahead.lines<kUnpackLines<IQ4_NL>>();
    Bytes u[8];
    nibble_groups(rows, offset + 2, u);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) u[g] = look_up(table, u[g]);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], low_halves(gather_first(rows, offset)));
  }
}

static inline void unpack(MXFP4, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes table = lookup_table(kE2M1Doubled, MXFP4::kOffset);
  for (int block = 0; block < n; ++block, offset += MXFP4::kBytes) {
    ahead.lines<kUnpackLines<MXFP4>>();
    Bytes u[8];
    nibble_groups(rows, offset + 1, u);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) u[g] = look_up(table, u[g]);
    store_groups(panel.u + 8 * block, u);
    store(panel.scale[block], mxfp4_scales(gather_first(rows, offset)));
  }
}

/// Header of Q4_K and Q5_K: d, dmin and eight six-bit scales and minima, transposed to the panel.
static inline void k_header(const uint8_t* const* rows, int64_t offset, float (*scale)[kRows], float (*min)[kRows]) {
  Bytes h[4];
  transpose16(rows, offset, h);
  const Floats d = low_halves(h[0]);
  const Floats dmin = negated(high_halves(h[0]));
  const Bytes six = splat8(0x3f), top = splat8(0x30);
  const Bytes scales[2] = {bit_and(h[1], six), or_masked(low_nibbles(h[3]), shift_right32(h[1], 2), top)};
  const Bytes mins[2] = {bit_and(h[2], six), or_masked(high_nibbles(h[3]), shift_right32(h[2], 2), top)};
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    store(scale[j], mul(to_floats(byte_of(scales[j / 4], j % 4)), d));
    store(min[j], mul(to_floats(byte_of(mins[j / 4], j % 4)), dmin));
  }
}

static inline void unpack(Q4_K, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  for (int block = 0; block < n; ++block, offset += Q4_K::kBytes) {
    k_header(rows, offset, panel.scale + 8 * block, panel.min + 8 * block);
    for (int g = 0; g < 4; ++g) {
      ahead.lines<kUnpackLines<Q4_K> / 4>();
      Bytes packed[8];
      transpose32(rows, offset + 16 + 32 * g, packed);
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 16 * g;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        store(to[i], low_nibbles(packed[i]));
        store(to[i + 8], high_nibbles(packed[i]));
      }
    }
  }
}

static inline void unpack(Q5_K, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes bit = splat8(0x10);
  for (int block = 0; block < n; ++block, offset += Q5_K::kBytes) {
    k_header(rows, offset, panel.scale + 8 * block, panel.min + 8 * block);
    Bytes high[8];
    transpose32(rows, offset + 16, high);
    for (int g = 0; g < 4; ++g) {
      ahead.lines<kUnpackLines<Q5_K> / 4>();
      Bytes packed[8];
      transpose32(rows, offset + 48 + 32 * g, packed);
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 16 * g;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        store(to[i], or_masked(low_nibbles(packed[i]), shift_left16(high[i], 4), bit));
        store(to[i + 8], or_masked(high_nibbles(packed[i]), shift_left16(high[i], 3), bit));
        high[i] = shift_right16(high[i], 2);
      }
    }
  }
}

/// Sixteen signed bytes at rows[i] + offset times d.
static inline void signed_scales(const uint8_t* const* rows, int64_t offset, Floats d, float (*scale)[kRows]) {
  Bytes bytes[4];
  transpose16(rows, offset, bytes);
  const Floats small = mul(d, splat(0x1p-24f));  // exact
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    store(scale[j], mul(to_floats(signed_byte_of(bytes[j / 4], j % 4)), small));
  }
}

static inline void unpack(Q6_K, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes upper = splat8(0x30);
  for (int block = 0; block < n; ++block, offset += Q6_K::kBytes) {
    signed_scales(rows, offset + 192, high_halves(gather_last(rows, offset + 194)), panel.scale + 16 * block);
    for (int half = 0; half < 2; ++half) {
      ahead.lines<kUnpackLines<Q6_K> / 2>();
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 32 * half;
      Bytes high[8], low[8];
      transpose32(rows, offset + 128 + 32 * half, high);
      transpose32(rows, offset + 64 * half, low);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        store(to[i], or_masked(low_nibbles(low[i]), shift_left16(high[i], 4), upper));
        store(to[i + 16], or_masked(high_nibbles(low[i]), high[i], upper));
      }
      transpose32(rows, offset + 64 * half + 32, low);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        store(to[i + 8], or_masked(low_nibbles(low[i]), shift_left16(high[i], 2), upper));
        store(to[i + 24], or_masked(high_nibbles(low[i]), shift_right16(high[i], 2), upper));
      }
    }
  }
}

static inline void unpack(Q2_K, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes two = splat8(3);
  for (int block = 0; block < n; ++block, offset += Q2_K::kBytes) {
    const Bytes both = gather_last(rows, offset + 68);
    const Floats d = low_halves(both), dmin = negated(high_halves(both));
    Bytes bytes[4];
    transpose16(rows, offset, bytes);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      const Bytes s = byte_of(low_nibbles(bytes[j / 4]), j % 4), m = byte_of(high_nibbles(bytes[j / 4]), j % 4);
      store(panel.scale[16 * block + j], mul(to_floats(s), d));
      store(panel.min[16 * block + j], mul(to_floats(m), dmin));
    }
    for (int half = 0; half < 2; ++half) {
      ahead.lines<kUnpackLines<Q2_K> / 2>();
      Bytes packed[8];
      transpose32(rows, offset + 16 + 32 * half, packed);
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 32 * half;
      for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          store(to[8 * s + i], bit_and(packed[i], two));
          packed[i] = shift_right16(packed[i], 2);
        }
      }
    }
  }
}

static inline void unpack(Q3_K, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes two = splat8(3), third = splat8(4), upper = splat8(0x30);
  for (int block = 0; block < n; ++block, offset += Q3_K::kBytes) {
    // The last 16 bytes: two of qs, twelve of scales, d.
    Bytes tail[4];
    transpose16(rows, offset + 94, tail);
    const auto scale_word = [&](int j) { return bit_or(shift_right32(tail[j], 16), shift_left32(tail[j + 1], 16)); };
    const Bytes a = scale_word(0), b = scale_word(1), c = scale_word(2);
    const Bytes six[4] = {or_masked(low_nibbles(a), shift_left32(c, 4), upper),
                          or_masked(low_nibbles(b), shift_left32(c, 2), upper), or_masked(high_nibbles(a), c, upper),
                          or_masked(high_nibbles(b), shift_right32(c, 2), upper)};
    const Floats small = mul(high_halves(tail[3]), splat(0x1p-24f));  // exact
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      const Bytes minus32 = sub8(six[j / 4], splat8(32));
      store(panel.scale[16 * block + j], mul(to_floats(signed_byte_of(minus32, j % 4)), small));
    }
    Bytes mask[8];
    transpose32(rows, offset, mask);
    for (int half = 0; half < 2; ++half) {
      ahead.lines<kUnpackLines<Q3_K> / 2>();
      Bytes packed[8];
      transpose32(rows, offset + 32 + 32 * half, packed);
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 32 * half;
      for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const Bytes bit = shift_left16(mask[i], 2);  // its bit 2 is this part's third bit
          store(to[8 * s + i], or_masked(bit_and(packed[i], two), bit, third));
          packed[i] = shift_right16(packed[i], 2);
          mask[i] = shift_right16(mask[i], 1);
        }
      }
    }
  }
}

static inline void unpack(IQ4_XS, const uint8_t* const* rows, int64_t offset, int n, Panel& panel, Prefetcher& ahead) {
  const Bytes table = lookup_table(kIQ4Values, kFullRangeOffset);
  const Bytes upper = splat8(0x30);
  for (int block = 0; block < n; ++block, offset += IQ4_XS::kBytes) {
    Bytes header[4];
    transpose16(rows, offset, header);                                 // d, scales_h; scales_l
    const Floats small = mul(low_halves(header[0]), splat(0x1p-24f));  // exact
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      // Byte 2 (even) and 3 (odd sub-block) of the words: six bits.
      const Bytes low = bit_or(bit_and(shift_left32(shift_right32(header[1], 8 * pair), 16), splat32(0x000f0000)),
                               bit_and(shift_left32(shift_right32(header[1], 8 * pair), 20), splat32(0x0f000000)));
      const Bytes high =
          bit_or(bit_and(shift_left32(shift_right32(header[0], 16 + 4 * pair), 20), splat32(0x00300000)),
                 bit_and(shift_left32(shift_right32(header[0], 16 + 4 * pair), 26), splat32(0x30000000)));
      const Bytes minus32 = sub8(or_masked(low, high, upper), splat8(32));
      store(panel.scale[8 * block + 2 * pair], mul(to_floats(signed_byte_of(minus32, 2)), small));
      store(panel.scale[8 * block + 2 * pair + 1], mul(to_floats(signed_byte_of(minus32, 3)), small));
    }
    for (int pair = 0; pair < 4; ++pair) {
      ahead.lines<kUnpackLines<IQ4_XS> / 4>();
      Bytes packed[8];
      transpose32(rows, offset + 8 + 32 * pair, packed);
      uint8_t(*to)[kPanelBytes] = panel.u + 64 * block + 16 * pair;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {  // 16 bytes are a block of 32: low nibbles groups 0..3, high nibbles 4..7
        store(to[i / 4 * 8 + i % 4], look_up(table, low_nibbles(packed[i])));
        store(to[i / 4 * 8 + i % 4 + 4], look_up(table, high_nibbles(packed[i])));
      }
    }
  }
}

}  // namespace fathom::cpu::FATHOM_ISA
