// Latent attention on int8: kernels over a vector type S, compiled once for each instruction set that includes this.
// Everything that attention_tiles.h asks of S, and
//   kColumns (of a chunk: 4 * kLanes), kScoreRows, kMixLanes (of a tile), I (vector of 32-bit integers); load_int,
//   store_int, int_zero, to_floats; dot_bytes(acc, unsigned, signed): four products a lane; word_at(p): the
//   word at p for all lanes; from_half(bits): its value; load_codes(block): the bytes of a chunk from q8_0 blocks;
//   flip(codes): plus 128; transpose(rows, words): bytes of four rows to kColumns words, one for each column;
//   second_bytes(a, b, c, d): a word of the second bytes of four words.
// Everything is static: each instruction set has its own copy.
//
// Scores: codes of a cached row, plus 128 to be unsigned, times codes of the queries, which have a scale for 32
// elements as the row does; the sum over 128 times the queries' codes is where the integer sum begins. Values: the
// weights times the row's scale of a block, as bytes in 255ths of the largest such scale among the rows, times the
// row's codes, four rows a word. A byte is rounded up or down by turns as kThresholds says, not to the nearest: of many
// small weights the right share is 1, where otherwise all of them would be 0.
#pragma once

#include "core/quant/blocks.h"
#include "cpu/attention_kernels.h"

namespace fathom::cpu {

/// 49152 = 1.5 * 2^15: a float near it holds 8 bits after the point, and a byte in front of them in bits 8 to 15.
/// Added: 1/32 to 31/32 in the order of reversed bits, so that neighbouring rows round differently.
alignas(64) static const
    float kThresholds[16] = {49152 + 1 / 32.0F, 49152 + 17 / 32.0F, 49152 + 9 / 32.0F,  49152 + 25 / 32.0F,
                             49152 + 5 / 32.0F, 49152 + 21 / 32.0F, 49152 + 13 / 32.0F, 49152 + 29 / 32.0F,
                             49152 + 3 / 32.0F, 49152 + 19 / 32.0F, 49152 + 11 / 32.0F, 49152 + 27 / 32.0F,
                             49152 + 7 / 32.0F, 49152 + 23 / 32.0F, 49152 + 15 / 32.0F, 49152 + 31 / 32.0F};

template <typename S>
static void pack_slice(const std::byte* const* rows, const std::byte* const* ahead, int64_t n_rows,
                       const IntegerSlice& s) {
  constexpr int kBlocks = S::kColumns / kSmallBlock;  // of a chunk
  alignas(64) static const BlockQ8_0 kZeros[kBlocks] = {};
  for (int64_t row = 0; row < n_rows; row += 4) {
    for (int64_t col = 0; col < s.key_dim; col += S::kColumns) {
      const int64_t first = col / kSmallBlock;
      typename S::I codes[4];
      for (int64_t i = 0; i < 4; ++i) {
        const bool is_row = row + i < n_rows;
        const auto* block = is_row ? reinterpret_cast<const BlockQ8_0*>(rows[row + i]) + first : kZeros;
        if (ahead != nullptr && is_row)
          __builtin_prefetch(reinterpret_cast<const BlockQ8_0*>(ahead[row + i]) + first, 0, 2);
        codes[i] = S::load_codes(block);
        S::store_int(reinterpret_cast<uint32_t*>(s.keys + (row + i) * s.key_dim + col), S::flip(codes[i]));
        float* scales = s.scales + (row + i) * s.scale_stride + first;
        for (int j = 0; j < kBlocks; ++j) scales[j] = S::from_half(block[j].d);
      }
      if (col < s.value_dim) S::transpose(codes, s.values + row / 4 * s.value_dim + col);
    }
  }
}

/// The bytes of a block's weights, four rows a word. Sixteen rows in a round, whose thresholds stay in registers.
template <typename S>
static inline void round_weights(const float* p, const float* ratios, int64_t n_rows, uint32_t* bytes) {
  using F = typename S::F;
  const auto word = [&](int64_t row, int k, int64_t n) {
    F x[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const F threshold = S::set(kThresholds[k + j]);
      x[j] = j < n ? S::fma(S::load(p + (row + j) * S::kLanes), S::set(ratios[(row + j) * S::kLanes]), threshold)
                   : threshold;
    }
    S::store_int(bytes + row / 4 * S::kLanes, S::second_bytes(x[0], x[1], x[2], x[3]));
  };
  int64_t row = 0;
  for (; row + 16 <= n_rows; row += 16) {
#pragma GCC unroll 4
    for (int k = 0; k < 16; k += 4) word(row + k, k, 4);
  }
  for (; row < n_rows; row += 4) word(row, static_cast<int>(row % 16), n_rows - row);
}

/// Whole tiles: rows behind the last have numbers that nobody reads.
template <typename S>
static void integer_scores(const IntegerSlice& s, const uint32_t* queries, int64_t n_rows, float* scores) {
  constexpr int kRows = S::kScoreRows;
  const int64_t n_blocks = s.key_dim / kSmallBlock;
  for (int64_t row = 0; row < n_rows; row += kRows) {
    const uint8_t* keys = s.keys + row * s.key_dim;
    const float* scales = s.scales + row * s.scale_stride;
    const uint32_t* q = queries;
    typename S::F sum[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sum[m] = S::zero();
    for (int64_t b = 0; b < n_blocks; ++b, q += kQueryBlockWords * S::kLanes, keys += kSmallBlock) {
      const typename S::F scale = S::load(reinterpret_cast<const float*>(q + 8 * S::kLanes));
      const typename S::I begin = S::load_int(q + 9 * S::kLanes);
      typename S::I acc[kRows];
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) acc[m] = begin;
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) {
        const typename S::I words = S::load_int(q + k * S::kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) acc[m] = S::dot_bytes(acc[m], S::word_at(keys + m * s.key_dim + 4 * k), words);
      }
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m)
        sum[m] = S::fma(S::mul(S::to_floats(acc[m]), scale), S::set(scales[m * s.scale_stride + b]), sum[m]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) S::store(scores + (row + m) * S::kLanes, sum[m]);
  }
}

template <typename S>
static void integer_mix(const IntegerSlice& s, const float* p, int64_t n_rows, int64_t n_lanes, float* out,
                        int64_t out_stride) {
  using F = typename S::F;
  using I = typename S::I;
  constexpr int kLanes = S::kLanes, kTile = S::kMixLanes;
  const int64_t n_blocks = s.value_dim / kSmallBlock, n_groups = (n_rows + 3) / 4;
  alignas(64) float unit[16];
  alignas(64) uint32_t bytes[32 * kLanes];
  for (int64_t first = 0; first < n_blocks; first += kLanes) {  // blocks are lanes here
    F largest = S::zero();
    for (int64_t row = 0; row < n_rows; ++row)
      largest = S::max(largest, S::load(s.scales + row * s.scale_stride + first));
    S::store(unit, largest);
    const int64_t n = n_blocks - first < kLanes ? n_blocks - first : kLanes;
    float factor[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) factor[i] = unit[i] > 0 ? 255.0F / unit[i] : 0.0F;
    for (int64_t row = 0; row < n_rows; ++row)
      S::store(s.ratios + row * kLanes, S::mul(S::load(s.scales + row * s.scale_stride + first), S::load(factor)));
    for (int64_t i = 0; i < n; ++i) {
      round_weights<S>(p, s.ratios + i, n_rows, bytes);
      const F scale = S::set(unit[i] / 255.0F);
      const int64_t begin = (first + i) * kSmallBlock;
      for (int64_t lane = 0; lane < n_lanes; lane += kTile) {
        for (int64_t col = begin; col < begin + kSmallBlock; col += 2 * kLanes) {
          I acc[kTile][2];
#pragma GCC unroll 16
          for (int m = 0; m < kTile; ++m) acc[m][0] = acc[m][1] = S::int_zero();
          const uint32_t* values = s.values + col;
          const uint32_t* weights = bytes + lane;
          for (int64_t g = 0; g < n_groups; ++g, values += s.value_dim, weights += kLanes) {
            const I low = S::load_int(values), high = S::load_int(values + kLanes);
#pragma GCC unroll 16
            for (int m = 0; m < kTile; ++m) {
              const I weight = S::word_at(reinterpret_cast<const uint8_t*>(weights + m));
              acc[m][0] = S::dot_bytes(acc[m][0], weight, low);
              acc[m][1] = S::dot_bytes(acc[m][1], weight, high);
            }
          }
#pragma GCC unroll 16
          for (int m = 0; m < kTile; ++m) {
            if (lane + m >= n_lanes) break;
            float* to = out + (lane + m) * out_stride + col;
            S::store(to, S::mul(S::to_floats(acc[m][0]), scale));
            S::store(to + kLanes, S::mul(S::to_floats(acc[m][1]), scale));
          }
        }
      }
    }
  }
}

/// A query as IntegerAttention has it: for 32 elements 8 words of codes, the scale, and -128 times the codes' sum.
template <typename S> static void pack_integer_query(const float* x, float factor, uint32_t* words, int64_t n) {
  for (int64_t i = 0; i < n; i += kSmallBlock, words += kQueryBlockWords) {
    typename S::F most = S::zero();
    for (int64_t j = i; j < i + kSmallBlock; j += S::kLanes) {
      const typename S::F v = S::load(x + j);
      most = S::max(most, S::max(v, S::sub(S::zero(), v)));
    }
    float lanes[S::kLanes], largest = 0;
    S::store(lanes, most);
    for (const float v : lanes) largest = v > largest ? v : largest;
    const float to_code = largest > 0 ? 127.0F / largest : 0.0F, scale = largest / 127.0F * factor;
    int8_t codes[kSmallBlock];
    int32_t sum = 0;
    for (int64_t j = 0; j < kSmallBlock; ++j) {
      codes[j] = static_cast<int8_t>(__builtin_rintf(x[i + j] * to_code));
      sum += codes[j];
    }
    const int32_t begin = -128 * sum;
    __builtin_memcpy(words, codes, sizeof(codes));
    __builtin_memcpy(words + 8, &scale, sizeof(scale));
    __builtin_memcpy(words + 9, &begin, sizeof(begin));
  }
}

}  // namespace fathom::cpu
