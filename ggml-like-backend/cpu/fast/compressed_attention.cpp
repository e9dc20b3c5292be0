// V4's attention: a token's heads are the query rows of its blocks, and all look at the same rows, its own choice of
// them. Slices of rows are folded in order, so that neither the threads nor the other tokens matter.
#include "cpu/attention.h"
#include "cpu/compressed_rows.h"
#include "cpu/fast/paged_attention.h"

namespace fathom::cpu::fast {
namespace {

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Slices are jobs of their own while there are fewer blocks than this for each thread.
constexpr int64_t kBlocksPerThread = 3;

class CompressedAttention {
 public:
  CompressedAttention(const CompressedAttentionArgs& a, const MatmulKernels& matmul, int n_threads,
                      std::byte* shared_base, std::byte* own_base)
      : a_(a),
        kernels_(attention_kernels(matmul.isa, a.window.dtype)),
        shared_(shared_base),
        own_(own_base),
        n_(a.q.dim(2)),
        n_words_(word_count(kernels_, n_)),
        n_blocks_(div_up(a.q.dim(1), kernels_.lanes)),
        most_slices_(div_up(SeenRows::most(a), kSliceRows)),
        splits_(a.q.dim(0) * n_blocks_ < kBlocksPerThread * n_threads),
        same_type_(a.window.dtype == (kernels_.pack == 1 ? DType::kF32 : DType::kBF16)),
        scratch_(kernels_, own_) {
    partials_ = shared_.take<float>(splits_ ? a.q.dim(0) * n_blocks_ * most_slices_ * partial_floats() : 0);
    rows_ = own_.take<RowPointers>(1);
    row_words_ = own_.take<uint32_t>((kSliceRows + 1) * n_words_);
    decoded_ = own_.take<float>(n_ + kSpanSlack);
    words_ = own_.take<uint32_t>(n_words_);
    queries_ = own_.take<uint32_t>(n_blocks_ * n_words_ * kernels_.lanes);
    visible_ = own_.take<int32_t>(kernels_.lanes);
    partial_ = own_.take<float>(partial_floats());
    state_ = own_.take<float>(n_blocks_ * 2 * kernels_.lanes);
  }

  Workspace workspace() const { return {shared_.used(), own_.used()}; }

  void run(Worker& worker) {
    std::fill_n(row_words_ + kSliceRows * n_words_, n_words_, 0U);
    const int64_t n_tokens = a_.q.dim(0);
    if (!splits_) {
      worker.share(n_tokens, 1, [&](int64_t t, int64_t) { attend_token(t); });
      return;
    }
    const int64_t jobs_of_token = most_slices_ * n_blocks_;
    worker.share(n_tokens * jobs_of_token, most_slices_ < worker.count() ? 1 : n_blocks_,
                 [&](int64_t job, int64_t end) {
                   for (; job < end; ++job)
                     attend_part(job / jobs_of_token, job / n_blocks_ % most_slices_, job % n_blocks_);
                 });
    worker.barrier();
    worker.share(n_tokens * n_blocks_, 1, [&](int64_t job, int64_t) {
      const int64_t t = job / n_blocks_, block = job % n_blocks_;
      begin(t, block);
      const int64_t n_slices = div_up(SeenRows(a_, t).size(), kSliceRows);
      for (int64_t slice = 0; slice < n_slices; ++slice)
        fold(t, block, PartialResult(kernels_, n_, partial(t, slice, block)), slice + 1 == n_slices);
    });
  }

 private:
  int64_t partial_floats() const { return PartialResult::floats(kernels_, n_); }
  float* partial(int64_t t, int64_t slice, int64_t block) const {
    return partials_ + ((t * most_slices_ + slice) * n_blocks_ + block) * partial_floats();
  }
  int64_t heads_of(int64_t block) const {
    return std::min<int64_t>(kernels_.lanes, a_.q.dim(1) - block * kernels_.lanes);
  }
  float* out(int64_t t, int64_t block) const { return a_.out.row_as<float>(t) + block * kernels_.lanes * n_; }

  void pack_queries(int64_t t, int64_t block) {
    uint32_t* queries = queries_ + block * n_words_ * kernels_.lanes;
    for (int64_t lane = 0; lane < heads_of(block); ++lane) {
      kernels_.pack_words(a_.q.row_as<float>(t) + (block * kernels_.lanes + lane) * n_, a_.scale, words_, n_);
      spread_words(words_, n_words_, lane, kernels_.lanes, queries);
    }
  }

  /// Rows of neighbours are often 1 KiB apart and would compete for the same lines of the first-level cache: copies.
  void load(const SeenRows& rows, int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      uint32_t* words = row_words_ + i * n_words_;
      if (same_type_) {
        words[n_words_ - 1] = 0;
        std::memcpy(words, rows[first + i], row_bytes(a_.window.dtype, n_));
      } else {
        decode_row(kernels_, a_.window.dtype, rows[first + i], decoded_, n_);
        kernels_.pack_words(decoded_, 1.0F, words, n_);
      }
      rows_->keys[i] = rows_->values[i] = reinterpret_cast<const std::byte*>(words);
    }
    rows_->values[n] = reinterpret_cast<const std::byte*>(row_words_ + kSliceRows * n_words_);  // zeros
    rows_->keys_ahead = rows_->values_ahead = nullptr;
  }

  void attend(int64_t t, int64_t block, int64_t n_rows, const PartialResult& result) {
    std::fill_n(visible_, kernels_.lanes, static_cast<int32_t>(n_rows));
    const QueryBlock query{
        queries_ + block * n_words_ * kernels_.lanes, visible_, out(t, block), n_, 0, n_rows, heads_of(block), 0, 0};
    attend_slice(kernels_, query, *rows_, 0, n_rows, n_, n_, scratch_, result);
  }

  /// The sink as the first part of a softmax: weight 1 at its score, and no value.
  void begin(int64_t t, int64_t block) {
    float* state = state_ + block * 2 * kernels_.lanes;
    for (int64_t lane = 0; lane < kernels_.lanes; ++lane)
      state[lane] = lane < heads_of(block) ? a_.sinks.as<float>()[block * kernels_.lanes + lane] : 0.0F;
    std::fill_n(state + kernels_.lanes, kernels_.lanes, 1.0F);
    std::fill_n(out(t, block), heads_of(block) * n_, 0.0F);
  }

  void fold(int64_t t, int64_t block, const PartialResult& part, bool is_last) {
    float* state = state_ + block * 2 * kernels_.lanes;
    kernels_.fold({state, state + kernels_.lanes, out(t, block), n_, part.max, part.sum, part.out, part.out_stride, n_,
                   heads_of(block), false, is_last});
  }

  void attend_token(int64_t t) {
    const SeenRows rows(a_, t);
    for (int64_t block = 0; block < n_blocks_; ++block) pack_queries(t, block), begin(t, block);
    const PartialResult part(kernels_, n_, partial_);
    for (int64_t first = 0; first < rows.size(); first += kSliceRows) {
      const int64_t n = std::min(kSliceRows, rows.size() - first);
      load(rows, first, n);
      for (int64_t block = 0; block < n_blocks_; ++block) {
        attend(t, block, n, part);
        fold(t, block, part, first + n == rows.size());
      }
    }
  }

  void attend_part(int64_t t, int64_t slice, int64_t block) {
    const SeenRows rows(a_, t);
    const int64_t first = slice * kSliceRows, n = std::min(kSliceRows, rows.size() - first);
    if (n <= 0) return;
    pack_queries(t, block);
    if (loaded_token_ != t || loaded_slice_ != slice) load(rows, first, n);
    loaded_token_ = t, loaded_slice_ = slice;
    attend(t, block, n, PartialResult(kernels_, n_, partial(t, slice, block)));
  }

  const CompressedAttentionArgs& a_;
  const AttentionKernels& kernels_;
  Carver shared_, own_;
  const int64_t n_, n_words_, n_blocks_, most_slices_;
  const bool splits_, same_type_;
  SliceScratch scratch_;
  float* partials_;  ///< [T][slices][blocks]
  RowPointers* rows_;
  uint32_t* row_words_;  ///< [kSliceRows + 1][N] operands, the last one zeros
  float* decoded_;
  uint32_t* words_;
  uint32_t* queries_;  ///< [blocks][N words][lanes]
  int32_t* visible_;
  float* partial_;
  float* state_;  ///< [blocks][2][lanes] running maximum and sum
  int64_t loaded_token_ = -1, loaded_slice_ = -1;
};

}  // namespace

Workspace compressed_attention_workspace(const CompressedAttentionArgs& a, const MatmulKernels& kernels,
                                         int n_threads) {
  return CompressedAttention(a, kernels, n_threads, nullptr, nullptr).workspace();
}

void compressed_attention(const CompressedAttentionArgs& a, OpContext& c) {
  CompressedAttention(a, *c.matmul, c.worker.count(), c.shared, c.own).run(c.worker);
}

}  // namespace fathom::cpu::fast
