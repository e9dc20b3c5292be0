// The inner loops of attention by instruction set. Plain: included by files that are compiled for one instruction set.
//
// Everything is computed for a block of `lanes` query rows (tokens, heads or both) that look at the same cached rows: a
// vector's lanes are query rows, so scores, softmax and sums never cross lanes, and every query row's result is one
// chain of operations in order of position, whatever shares the block with it.
//
// Operands are words of 4 bytes along the summed dimension: two bf16 (pack 2) or one float (pack 1).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fathom::cpu {

/// c[m][lane] = sum over steps of a[m][step] * b[step][lane], for panels of `lanes` columns; sums are f32.
struct MultiplyTask {
  const std::byte* a;  ///< row m at a + m * a_stride_bytes: n_steps words
  int64_t a_stride_bytes;
  const uint32_t* b;  ///< step k of panel p at b + p * b_panel_words + k * b_step_words: `lanes` words
  int64_t b_panel_words;
  int64_t b_step_words;
  float* c;  ///< row m of panel p at c + m * c_stride + p * c_panel_stride
  int64_t c_stride;
  int64_t c_panel_stride;
  int64_t n_rows;
  int64_t n_panels;
  int64_t n_steps;
  bool add;                ///< to what c holds: a sum over more steps than one call has
  const std::byte* ahead;  ///< rows that will be wanted later, or null: row m is fetched while row m of a is multiplied
  int64_t ahead_stride_bytes;
};

/// Weights of a slice of cached rows: p = exp(score - max over the lane's visible rows), 0 for the others.
struct SoftmaxTask {
  const float* scores;  ///< [n_rows][lanes]
  int64_t n_rows;
  const int32_t* visible;  ///< [lanes] rows of this slice that the lane sees: its first ones; may be <= 0 or > n_rows
  uint32_t* p;             ///< [ceil(n_rows / pack)][lanes] words
  float* max;              ///< [lanes]; -infinity without a visible row
  float* sum;              ///< [lanes] of the weights as rounded to p
};

/// out[lane][i] = sum over rows of p[row][lane] * row[i].
struct MixTask {
  const uint32_t* p;
  const std::byte* const* rows;  ///< n_rows, rounded up to a multiple of pack, addresses of n_cols elements
  int64_t n_rows;
  int64_t n_cols;
  int64_t n_lanes;  ///< lanes that are wanted
  float* out;       ///< lane i at out + i * out_stride
  int64_t out_stride;
  const std::byte* ahead;  ///< as in MultiplyTask: n_rows rows of n_cols elements, or null
  int64_t ahead_stride_bytes;
};

/// Scores of the lightning indexer: scores[row] = sum over heads of weights[head] * max(products[row][head], 0).
struct WeighHeadsTask {
  const float* products;  ///< [n_rows][n_panels][lanes]
  int64_t n_rows;
  int64_t n_panels;
  const float* weights;  ///< [n_panels][lanes]
  float* scores;         ///< [n_rows]
};

/// Adds a slice's partial result to what the slices before it gave: the larger maximum becomes the common one.
struct FoldTask {
  float* max;  ///< [lanes] running
  float* sum;
  float* out;  ///< lane i at out + i * out_stride, n_cols floats
  int64_t out_stride;
  const float* part_max;  ///< [lanes] of the slice
  const float* part_sum;
  const float* part;  ///< lane i at part + i * part_stride
  int64_t part_stride;
  int64_t n_cols;
  int64_t n_lanes;
  bool first;  ///< nothing before: the running values may be anything
  bool last;   ///< nothing after: divides by the sum
};

/// Decodes a stored row of n elements (whole blocks) to floats.
using DecodeRow = void (*)(const void* src, float* dst, int64_t n);

/// The same to words, bit for bit what decoding and pack_words with a factor of 1 give.
using PackRow = void (*)(const void* src, uint32_t* words, int64_t n);

/// Rows of a slice of a q8_0 cache as int8 operands, in a thread's own memory.
struct IntegerSlice {
  uint8_t* keys;  ///< [rows][key_dim] codes plus 128
  float* scales;  ///< [rows][scale_stride], one for 32 elements
  int64_t scale_stride;
  uint32_t* values;            ///< [rows / 4][value_dim] words: codes of four rows in a column
  float* ratios;               ///< [rows][lanes] for mix to work with
  int64_t key_dim, value_dim;  ///< multiples of 64; the value is the beginning of the key
};

/// Words that a lane's query has for 32 elements: 8 of codes, the scale (a float), -128 times the codes' sum.
constexpr int kQueryBlockWords = 10;

/// Absorbed attention over q8_0 rows by products of integers; a slice has at most 128 rows, its buffers are for so
/// many. Relative errors: queries 0.4 %, weights 1/255 of the slice's largest, of either sign.
struct IntegerAttention {
  /// Meanwhile the rows at `ahead`, as many, are fetched into the second-level cache; null: none.
  void (*pack)(const std::byte* const* rows, const std::byte* const* ahead, int64_t n_rows, const IntegerSlice& slice);
  /// scores [n_rows, up to a multiple of 8][lanes] of queries [key_dim / 32][kQueryBlockWords][lanes].
  void (*scores)(const IntegerSlice& slice, const uint32_t* queries, int64_t n_rows, float* scores);
  /// Lane i at out + i * out_stride: the sum over rows of p[row][lane] * value, p in 0..1; all lanes see all rows.
  void (*mix)(const IntegerSlice& slice, const float* p, int64_t n_rows, int64_t n_lanes, float* out,
              int64_t out_stride);
};

struct AttentionKernels {
  int lanes;
  int pack;
  void (*multiply)(const MultiplyTask&);
  void (*softmax)(const SoftmaxTask&);
  void (*mix)(const MixTask&);
  void (*fold)(const FoldTask&);
  void (*weigh_heads)(const WeighHeadsTask&);
  /// x[n] * factor to words, the last one filled up with zero.
  void (*pack_words)(const float* x, float factor, uint32_t* words, int64_t n);
  /// The decoder of a type, by its number in DType, or null.
  DecodeRow (*row_decoder)(uint32_t dtype);
  /// Of a type whose rows go to words straight, by its number in DType, or null.
  PackRow (*row_packer)(uint32_t dtype);
  /// In place of multiply and mix, or null. pack_words makes queries for them, and softmax's weights are floats.
  const IntegerAttention* integers;
};

namespace avx2 {
extern const AttentionKernels attention_f32;
DecodeRow row_decoder(uint32_t dtype);
}  // namespace avx2
namespace avx_vnni {
extern const AttentionKernels attention_int8;
}
namespace avx512 {
extern const AttentionKernels attention_int8;
extern const AttentionKernels attention_f32;
extern const AttentionKernels attention_bf16;  ///< needs AVX512_BF16
DecodeRow row_decoder(uint32_t dtype);
}  // namespace avx512

}  // namespace fathom::cpu
