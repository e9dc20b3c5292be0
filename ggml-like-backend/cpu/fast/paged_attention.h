// Attention of blocks of query rows over cached rows: slices of the cache in parallel, then their exact merge.
//
// A slice is kSliceRows cached rows from a multiple of kSliceRows on; kGroupSlices slices are a group. A group's result
// is the fold of its slices in order, a query row's the fold of its groups in order. Whether a job is a slice or a
// group, and in how many waves partial results are kept, does not matter to that.
#pragma once

#include "cpu/fast/attention_isa.h"
#include "cpu/fast/matmul_tasks.h"
#include "cpu/op_context.h"
#include "cpu/sequence_runs.h"

namespace fathom::cpu::fast {

/// 128 rows of 576 bf16 are 147 KB: they stay in a second-level cache between scores and values. 4096 rows make 32
/// jobs.
constexpr int64_t kSliceRows = 128;

/// A job that folds 8 slices itself writes an eighth of the partial results, which else take a sixth of the time.
constexpr int64_t kGroupSlices = 8;

/// Up to `lanes` query rows of one sequence.
struct QueryBlock {
  const uint32_t* queries;  ///< [key steps][lanes] words, softmax scale included
  const int32_t* visible;   ///< [lanes] cached rows each one sees
  float* out;               ///< row i at out + i * out_stride: value_dim floats
  int64_t out_stride;
  int64_t sequence;
  int64_t n_visible;  ///< the most that one sees
  int64_t n_lanes;
  int64_t key_offset;    ///< elements from a cached row's start to its key
  int64_t value_offset;  ///< and to its value
  /// The rows they see, n_visible of them, by number in the sequence; null: the sequence's first ones.
  const int32_t* chosen = nullptr;
};

/// Addresses of the keys and values of consecutive cached rows in the kernels' operand type.
struct RowPointers {
  const std::byte* keys[kSliceRows];
  const std::byte* values[kSliceRows + 1];  ///< one more than there are rows: zeros, to complete a pair
  /// Cached rows that will be loaded next, to be fetched meanwhile; null: none, or they are these values' keys.
  const std::byte* keys_ahead;
  const std::byte* values_ahead;
  int64_t ahead_stride_bytes;
};

/// Words of a key row of n elements.
inline int64_t word_count(const AttentionKernels& k, int64_t n) {
  return k.integers != nullptr ? n / 32 * kQueryBlockWords : (n + k.pack - 1) / k.pack;
}

/// c[i * c_stride + panel * c_panel_stride + lane] = row i . b for n rows: those at a constant distance together, a
/// page or what is left of it. Meanwhile the next such rows are fetched, after the last ones the next slice's.
inline void multiply_rows(const AttentionKernels& k, const RowPointers& rows, int64_t n, const uint32_t* b,
                          int64_t n_panels, int64_t n_steps, float* c, int64_t c_stride, int64_t c_panel_stride) {
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin + 1;
    const int64_t stride = end < n ? rows.keys[end] - rows.keys[begin] : 4 * n_steps;
    while (end < n && rows.keys[end] - rows.keys[end - 1] == stride) ++end;
    k.multiply({rows.keys[begin], stride, b, n_steps * k.lanes, k.lanes, c + begin * c_stride, c_stride, c_panel_stride,
                end - begin, n_panels, n_steps, false, end < n ? rows.keys[end] : rows.keys_ahead,
                end < n ? stride : rows.ahead_stride_bytes});
    begin = end;
  }
}

/// Puts a query's words into its lane of a block: queries [n_words][lanes].
inline void spread_words(const uint32_t* words, int64_t n_words, int64_t lane, int64_t lanes, uint32_t* queries) {
  for (int64_t i = 0; i < n_words; ++i) queries[i * lanes + lane] = words[i];
}

/// Finds rows in the cache. They are operands in place where the types agree and neighbours do not compete for the same
/// lines of the first-level cache; else they are copied or converted. Chosen rows, which lie anywhere, are brought
/// together so that they are multiplied many at a time. One for each thread.
class CachedRows {
 public:
  CachedRows(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step, int64_t key_dim,
             int64_t value_dim, Carver& own, bool has_choice = false);
  /// Once, before the first load.
  void prepare();
  /// Rows [first, first + n) of a sequence, or of those chosen (only where there is a choice); n <= kSliceRows.
  const RowPointers& load(int64_t sequence, int64_t first, int64_t n, int64_t key_offset, int64_t value_offset,
                          const int32_t* chosen = nullptr);
  /// What load() will be asked for next: what it returned last has it fetched. Nothing if the sequence has no such row.
  void announce(int64_t sequence, int64_t first, int64_t key_offset, int64_t value_offset);

 private:
  /// Where element `offset` of a cached row is; of a quantized type, where its block is.
  int64_t offset_bytes(int64_t offset) const;
  void fetch(const std::byte* row) const;
  /// Row i of rows_ from a cached row.
  void convert(const std::byte* row, int64_t i, int64_t key_offset, int64_t value_offset);

  const AttentionKernels& kernels_;
  const Tensor& cache_;
  const StepTensors& step_;
  const int64_t key_dim_, value_dim_, block_elements_;
  const PackRow packer_;  ///< of the cache's type, or null
  const bool same_type_, in_place_;
  RowPointers* rows_;
  float* decoded_;       ///< one row
  uint32_t* key_words_;  ///< [kSliceRows] converted rows
  uint32_t* value_words_;
  std::byte* zeros_;
  int64_t loaded_[5] = {-1, -1, -1, -1, -1};  ///< what rows_ holds
  const int32_t* loaded_choice_ = nullptr;
};

/// The same for products of integers. One for each thread.
class IntegerRows {
 public:
  IntegerRows(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step, int64_t key_dim,
              int64_t value_dim, Carver& own);
  /// As CachedRows::load. Meanwhile the sequence's next slice is fetched; of chosen rows the next few.
  const IntegerSlice& load(int64_t sequence, int64_t first, int64_t n, const int32_t* chosen);

 private:
  /// Addresses of n rows; false if the sequence has no page for some of them.
  bool find(int64_t sequence, int64_t first, int64_t n, const std::byte** addresses) const;

  const AttentionKernels& kernels_;
  const Tensor& cache_;
  const StepTensors& step_;
  IntegerSlice slice_;
  const std::byte** addresses_;  ///< [2][kSliceRows]: of the slice's rows and of the next one's
  int64_t loaded_[3] = {-1, -1, -1};
  const int32_t* loaded_choice_ = nullptr;
};

/// A thread's buffers for one slice and block.
struct SliceScratch {
  float* scores;     ///< [blocks][kSliceRows][lanes]
  uint32_t* p;       ///< [kSliceRows / pack][lanes]
  int32_t* visible;  ///< [lanes]
  SliceScratch(const AttentionKernels& k, Carver& own, int64_t n_blocks = 1)
      : scores(own.take<float>(n_blocks * kSliceRows * k.lanes)),
        p(own.take<uint32_t>(kSliceRows * k.lanes)),
        visible(own.take<int32_t>(k.lanes)) {}
};

/// A partial result: max and sum [lanes], values [lanes][stride].
struct PartialResult {
  float* max;
  float* sum;
  float* out;
  int64_t out_stride;
  static int64_t floats(const AttentionKernels& k, int64_t value_dim) { return k.lanes * (2 + stride(value_dim)); }
  static int64_t stride(int64_t value_dim) { return (value_dim + 15) / 16 * 16; }
  PartialResult(const AttentionKernels& k, int64_t value_dim, float* at)
      : max(at), sum(at + k.lanes), out(at + 2 * k.lanes), out_stride(stride(value_dim)) {}
};

/// One block against n rows, the first of which has position `first`.
void attend_slice(const AttentionKernels& k, const QueryBlock& block, const RowPointers& rows, int64_t first, int64_t n,
                  int64_t key_dim, int64_t value_dim, const SliceScratch& scratch, const PartialResult& result);

/// Workspace and course of an attention over the cache. All threads construct it alike. chosen: [T, top_k], of which
/// the blocks have rows, or empty; no block sees more rows then.
class PagedAttention {
 public:
  PagedAttention(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step, const Tensor& chosen,
                 int64_t key_dim, int64_t value_dim, int64_t n_blocks, int n_threads, Carver& shared, Carver& own);

  /// For the caller to fill in, before the barrier that comes before run().
  QueryBlock* blocks() const { return blocks_; }
  int32_t* visible(int64_t block) const { return visible_ + block * kernels_.lanes; }
  uint32_t* queries(int64_t block) const { return queries_ + block * word_count(kernels_, key_dim_) * kernels_.lanes; }

  /// All threads together. Results are in the blocks' `out` after the next barrier.
  void run(Worker& worker);

 private:
  /// The folds of slices [first, last) of n neighbouring blocks into partial results that follow each other.
  void attend_slices(const QueryBlock* blocks, int64_t n, int64_t first, int64_t last, float* results);

  const AttentionKernels& kernels_;
  const int64_t key_dim_, value_dim_, n_blocks_;
  const int64_t n_groups_;          ///< of the most rows that a block sees
  const int64_t partials_a_group_;  ///< 1: a job is a group; kGroupSlices: a job is a slice
  const int64_t wave_groups_;       ///< whose partial results are kept at a time
  const int64_t n_column_parts_;
  QueryBlock* blocks_;
  int32_t* visible_;
  uint32_t* queries_;
  float* state_;     ///< [blocks][column parts][2][lanes] running maximum and sum
  float* partials_;  ///< [wave_groups][partials_a_group][blocks]
  float* partial_;   ///< one slice of a thread
  CachedRows rows_;
  IntegerRows integer_rows_;
  SliceScratch scratch_;
};

}  // namespace fathom::cpu::fast
