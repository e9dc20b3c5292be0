#include "cpu/fast/paged_attention.h"

#include <algorithm>
#include <cstring>

#include "core/quant/blocks.h"

namespace fathom::cpu::fast {
namespace {

/// Partial results kept at a time: enough for every slice of a long context at decode; more blocks take more waves.
constexpr int64_t kPartialBytes = int64_t{48} << 20;

constexpr int64_t kGroupRows = kGroupSlices * kSliceRows;

/// Groups are jobs where every thread gets a few, slices otherwise.
constexpr int64_t kJobsPerThread = 3;

constexpr int kMaxLanes = 16;

/// Neighbouring blocks whose scores are computed together; their queries follow each other.
constexpr int64_t kBlocksTogether = 2;

/// Values of a block are folded in parts of so many columns, so that one block keeps several threads busy.
constexpr int64_t kColumnPart = 64;

bool same_rows(const QueryBlock& a, const QueryBlock& b) {
  return a.sequence == b.sequence && a.key_offset == b.key_offset && a.chosen == b.chosen;
}

bool operand_type(const AttentionKernels& k, DType cache) {
  return cache == (k.pack == 1 ? DType::kF32 : DType::kBF16);
}

/// Rows at a multiple of 1 KB (V1's: 8 KB) lie in so few sets of a first-level cache that a tile of 16 does not fit.
constexpr int64_t kCompetingStride = 1024;

/// Chosen rows that are under way from memory while one is copied.
constexpr int64_t kRowsAhead = 4;

}  // namespace

CachedRows::CachedRows(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step, int64_t key_dim,
                       int64_t value_dim, Carver& own, bool has_choice)
    : kernels_(kernels),
      cache_(cache),
      step_(step),
      key_dim_(key_dim),
      value_dim_(value_dim),
      block_elements_(dtype_info(cache.dtype).block_elements),
      packer_(kernels.row_packer(static_cast<uint32_t>(cache.dtype))),
      same_type_(operand_type(kernels, cache.dtype)),
      in_place_(same_type_ && key_dim % kernels.pack == 0 && cache.strides_bytes[1] % kCompetingStride != 0) {
  rows_ = own.take<RowPointers>(1);
  zeros_ = own.take<std::byte>(4 * (value_dim + kSpanSlack));
  const bool converts = (!in_place_ || has_choice) && kernels.integers == nullptr;
  decoded_ = own.take<float>(converts ? std::max(key_dim, value_dim) + kSpanSlack : 0);
  key_words_ = own.take<uint32_t>(converts ? kSliceRows * word_count(kernels, key_dim) : 0);
  value_words_ = own.take<uint32_t>(converts ? kSliceRows * word_count(kernels, value_dim) : 0);
}

void CachedRows::prepare() { std::memset(zeros_, 0, static_cast<size_t>(4 * (value_dim_ + kSpanSlack))); }

void CachedRows::convert(const std::byte* row, int64_t i, int64_t key_offset, int64_t value_offset) {
  const auto put = [&](int64_t offset, int64_t n, uint32_t* words) {
    if (same_type_) {
      const int64_t element = 4 / kernels_.pack;
      words[word_count(kernels_, n) - 1] = 0;
      std::memcpy(words, row + offset * element, static_cast<size_t>(n * element));
    } else if (packer_ != nullptr && offset % block_elements_ == 0 && n % block_elements_ == 0) {
      packer_(row + offset_bytes(offset), words, n);
    } else {
      decode_span(kernels_, cache_.dtype, row, offset, decoded_, n);
      kernels_.pack_words(decoded_, 1.0F, words, n);
    }
    return reinterpret_cast<const std::byte*>(words);
  };
  rows_->keys[i] = rows_->values[i] = put(key_offset, key_dim_, key_words_ + i * word_count(kernels_, key_dim_));
  if (value_offset == key_offset || value_dim_ == 0) return;
  rows_->values[i] = put(value_offset, value_dim_, value_words_ + i * word_count(kernels_, value_dim_));
}

int64_t CachedRows::offset_bytes(int64_t offset) const {
  return offset / block_elements_ * dtype_info(cache_.dtype).block_bytes;
}

void CachedRows::fetch(const std::byte* row) const {
  for (int64_t at = 0; at < cache_.strides_bytes[1]; at += 64) __builtin_prefetch(row + at);
}

const RowPointers& CachedRows::load(int64_t sequence, int64_t first, int64_t n, int64_t key_offset,
                                    int64_t value_offset, const int32_t* chosen) {
  rows_->keys_ahead = rows_->values_ahead = nullptr;
  const int64_t wanted[5] = {sequence, first, n, key_offset, value_offset};
  if (std::equal(wanted, wanted + 5, loaded_) && chosen == loaded_choice_) return *rows_;
  std::copy_n(wanted, 5, loaded_), loaded_choice_ = chosen;
  rows_->values[n] = zeros_;
  if (chosen != nullptr) {
    const auto row = [&](int64_t i) { return cached_row(cache_, step_, sequence, chosen[first + i]); };
    for (int64_t i = 0; i < std::min(kRowsAhead, n); ++i) fetch(row(i));
    for (int64_t i = 0; i < n; ++i) {
      if (i + kRowsAhead < n) fetch(row(i + kRowsAhead));
      convert(row(i), i, key_offset, value_offset);
    }
    return *rows_;
  }
  const int64_t page_tokens = cache_.dim(1), stride = cache_.strides_bytes[1];
  const int64_t key_bytes = offset_bytes(key_offset), value_bytes = offset_bytes(value_offset);
  for (int64_t i = 0; i < n;) {
    const std::byte* row = cached_row(cache_, step_, sequence, first + i);
    const int64_t page_end = std::min(n, i + page_tokens - (first + i) % page_tokens);
    for (; i < page_end; ++i, row += stride) {
      if (in_place_) {
        rows_->keys[i] = row + key_bytes;
        rows_->values[i] = row + value_bytes;
      } else {
        convert(row, i, key_offset, value_offset);
      }
    }
  }
  rows_->ahead_stride_bytes = stride;
  return *rows_;
}

void CachedRows::announce(int64_t sequence, int64_t first, int64_t key_offset, int64_t value_offset) {
  const int64_t page = first / cache_.dim(1);
  if (page >= step_.page_table.dim(1) || step_.page_table.row_as<int32_t>(sequence)[page] < 0) return;
  const std::byte* row = cached_row(cache_, step_, sequence, first);
  rows_->keys_ahead = row + offset_bytes(key_offset);
  rows_->values_ahead = value_offset == key_offset ? nullptr : row + offset_bytes(value_offset);
}

IntegerRows::IntegerRows(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step, int64_t key_dim,
                         int64_t value_dim, Carver& own)
    : kernels_(kernels), cache_(cache), step_(step) {
  const int64_t n = kernels.integers != nullptr ? kSliceRows : 0;
  // Scales are read a vector at a time from a multiple of one on.
  const int64_t scale_stride = (key_dim / kSmallBlock + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  slice_ = {own.take<uint8_t>(n * key_dim),
            own.take<float>(n * scale_stride),
            scale_stride,
            own.take<uint32_t>(n / 4 * value_dim),
            own.take<float>(n * kernels.lanes),
            key_dim,
            value_dim};
  addresses_ = own.take<const std::byte*>(2 * n);
}

bool IntegerRows::find(int64_t sequence, int64_t first, int64_t n, const std::byte** addresses) const {
  const int64_t page_tokens = cache_.dim(1), stride = cache_.strides_bytes[1];
  for (int64_t i = 0; i < n;) {
    const int64_t page = (first + i) / page_tokens;
    if (page >= step_.page_table.dim(1) || step_.page_table.row_as<int32_t>(sequence)[page] < 0) return false;
    const std::byte* row = cached_row(cache_, step_, sequence, first + i);
    const int64_t page_end = std::min(n, i + page_tokens - (first + i) % page_tokens);
    for (; i < page_end; ++i, row += stride) addresses[i] = row;
  }
  return true;
}

const IntegerSlice& IntegerRows::load(int64_t sequence, int64_t first, int64_t n, const int32_t* chosen) {
  const int64_t wanted[3] = {sequence, first, n};
  if (std::equal(wanted, wanted + 3, loaded_) && chosen == loaded_choice_) return slice_;
  std::copy_n(wanted, 3, loaded_), loaded_choice_ = chosen;
  if (chosen != nullptr) {
    for (int64_t i = 0; i < n; ++i) addresses_[i] = cached_row(cache_, step_, sequence, chosen[first + i]);
    std::fill_n(addresses_ + n, kRowsAhead, addresses_[n - 1]);
    kernels_.integers->pack(addresses_, addresses_ + kRowsAhead, n, slice_);
    return slice_;
  }
  const std::byte** ahead = addresses_ + kSliceRows;
  find(sequence, first, n, addresses_);
  const bool has_next = find(sequence, first + kSliceRows, n, ahead);
  kernels_.integers->pack(addresses_, has_next ? ahead : nullptr, n, slice_);
  return slice_;
}

namespace {

/// attend_slice by products of integers.
void attend_integer_slice(const AttentionKernels& k, const QueryBlock& block, const IntegerSlice& rows, int64_t n,
                          const SliceScratch& scratch, const PartialResult& result) {
  k.integers->scores(rows, block.queries, n, scratch.scores);
  std::fill_n(scratch.visible, k.lanes, static_cast<int32_t>(n));
  k.softmax({scratch.scores, n, scratch.visible, scratch.p, result.max, result.sum});
  k.integers->mix(rows, reinterpret_cast<const float*>(scratch.p), n, block.n_lanes, result.out, result.out_stride);
}

/// What follows the scores.
void weigh_slice(const AttentionKernels& k, const QueryBlock& block, const RowPointers& rows, int64_t first, int64_t n,
                 int64_t value_dim, const float* scores, const SliceScratch& scratch, const PartialResult& result) {
  for (int i = 0; i < k.lanes; ++i) scratch.visible[i] = static_cast<int32_t>(block.visible[i] - first);
  k.softmax({scores, n, scratch.visible, scratch.p, result.max, result.sum});
  k.mix({scratch.p, rows.values, n, value_dim, block.n_lanes, result.out, result.out_stride, rows.values_ahead,
         rows.ahead_stride_bytes});
}

}  // namespace

void attend_slice(const AttentionKernels& k, const QueryBlock& block, const RowPointers& rows, int64_t first, int64_t n,
                  int64_t key_dim, int64_t value_dim, const SliceScratch& scratch, const PartialResult& result) {
  multiply_rows(k, rows, n, block.queries, 1, word_count(k, key_dim), scratch.scores, k.lanes, 0);
  weigh_slice(k, block, rows, first, n, value_dim, scratch.scores, scratch, result);
}

PagedAttention::PagedAttention(const AttentionKernels& kernels, const Tensor& cache, const StepTensors& step,
                               const Tensor& chosen, int64_t key_dim, int64_t value_dim, int64_t n_blocks,
                               int n_threads, Carver& shared, Carver& own)
    : kernels_(kernels),
      key_dim_(key_dim),
      value_dim_(value_dim),
      n_blocks_(n_blocks),
      n_groups_((std::min(deepest_context(step), chosen ? chosen.dim(1) : INT64_MAX) + kGroupRows - 1) / kGroupRows),
      partials_a_group_(n_groups_ * n_blocks >= kJobsPerThread * n_threads ? 1 : kGroupSlices),
      wave_groups_(std::clamp<int64_t>(kPartialBytes / (4 * PartialResult::floats(kernels, value_dim) *
                                                        partials_a_group_ * std::max<int64_t>(n_blocks, 1)),
                                       1, std::max<int64_t>(n_groups_, 1))),
      n_column_parts_((value_dim + kColumnPart - 1) / kColumnPart),
      blocks_(shared.take<QueryBlock>(n_blocks)),
      visible_(shared.take<int32_t>(n_blocks * kernels.lanes)),
      queries_(shared.take<uint32_t>(n_blocks * word_count(kernels, key_dim) * kernels.lanes)),
      state_(shared.take<float>(n_blocks * n_column_parts_ * 2 * kernels.lanes)),
      partials_(
          shared.take<float>(wave_groups_ * partials_a_group_ * n_blocks * PartialResult::floats(kernels, value_dim))),
      partial_(own.take<float>(PartialResult::floats(kernels, value_dim))),
      rows_(kernels, cache, step, key_dim, value_dim, own, static_cast<bool>(chosen)),
      integer_rows_(kernels, cache, step, key_dim, value_dim, own),
      scratch_(kernels, own, kBlocksTogether) {}

void PagedAttention::attend_slices(const QueryBlock* blocks, int64_t n, int64_t first, int64_t last, float* results) {
  const PartialResult part(kernels_, value_dim_, partial_);
  for (int64_t slice = first; slice < last; ++slice) {
    const int64_t row = slice * kSliceRows;
    const auto rows_of = [&](int64_t i) { return std::min(kSliceRows, blocks[i].n_visible - row); };
    for (int64_t begin = 0, end; begin < n; begin = end) {
      const int64_t n_rows = rows_of(begin);
      end = begin + 1;
      if (n_rows <= 0) continue;
      while (end < n && end - begin < kBlocksTogether && rows_of(end) == n_rows &&
             same_rows(blocks[begin], blocks[end]))
        ++end;
      const RowPointers* rows = nullptr;
      if (kernels_.integers == nullptr) {
        const QueryBlock &block = blocks[begin], &next = blocks[end < n ? end : 0];
        rows = &rows_.load(block.sequence, row, n_rows, block.key_offset, block.value_offset, block.chosen);
        const bool rows_again = end < n && same_rows(block, next);
        if (!rows_again && next.chosen == nullptr)
          rows_.announce(next.sequence, end < n ? row : row + kSliceRows, next.key_offset, next.value_offset);
        multiply_rows(kernels_, *rows, n_rows, block.queries, end - begin, word_count(kernels_, key_dim_),
                      scratch_.scores, kernels_.lanes, kSliceRows * kernels_.lanes);
      }
      for (int64_t i = begin; i < end; ++i) {
        const QueryBlock& block = blocks[i];
        const PartialResult result(kernels_, value_dim_, results + i * PartialResult::floats(kernels_, value_dim_));
        const PartialResult& to = slice == first ? result : part;
        if (rows == nullptr) {
          attend_integer_slice(kernels_, block, integer_rows_.load(block.sequence, row, n_rows, block.chosen), n_rows,
                               scratch_, to);
        } else {
          weigh_slice(kernels_, block, *rows, row, n_rows, value_dim_,
                      scratch_.scores + (i - begin) * kSliceRows * kernels_.lanes, scratch_, to);
        }
        if (slice == first) continue;
        kernels_.fold({result.max, result.sum, result.out, result.out_stride, part.max, part.sum, part.out,
                       part.out_stride, value_dim_, block.n_lanes, false, false});
      }
    }
  }
}

void PagedAttention::run(Worker& worker) {
  rows_.prepare();
  const int64_t floats = PartialResult::floats(kernels_, value_dim_), job_slices = kGroupSlices / partials_a_group_;
  const auto slice_count = [](const QueryBlock& block) { return (block.n_visible + kSliceRows - 1) / kSliceRows; };
  const auto partial = [&](int64_t job) { return PartialResult(kernels_, value_dim_, partials_ + job * floats); };
  for (int64_t wave = 0; wave < n_groups_; wave += wave_groups_) {
    const int64_t wave_end = std::min(wave + wave_groups_, n_groups_);
    // Blocks of a slice are neighbours: they find its rows in the processor's cache, and converted.
    const int64_t n_jobs = (wave_end - wave) * partials_a_group_ * n_blocks_;
    worker.share(n_jobs, std::clamp<int64_t>(n_jobs / (8 * worker.count()), 1, 8), [&](int64_t job, int64_t end) {
      while (job < end) {
        const int64_t index = job % n_blocks_, n = std::min(end - job, n_blocks_ - index);
        const int64_t first = wave * kGroupSlices + job / n_blocks_ * job_slices;
        attend_slices(blocks_ + index, n, first, first + job_slices, partials_ + job * floats);
        job += n;
      }
    });
    worker.barrier();
    worker.share(n_blocks_ * n_column_parts_, 1, [&](int64_t job, int64_t) {
      const int64_t index = job / n_column_parts_, column = job % n_column_parts_ * kColumnPart;
      const int64_t n_columns = std::min(kColumnPart, value_dim_ - column);
      const QueryBlock& block = blocks_[index];
      const int64_t n_slices = slice_count(block), lanes = kernels_.lanes;
      float* state = state_ + job * 2 * lanes;
      for (int64_t group = wave; group < wave_end && group * kGroupSlices < n_slices; ++group) {
        const bool first = group == 0, last = (group + 1) * kGroupSlices >= n_slices;
        const int64_t n_partials = std::min(partials_a_group_, n_slices - group * kGroupSlices);
        const PartialResult whole = partial((group - wave) * partials_a_group_ * n_blocks_ + index);
        // The first slice's own columns take up the others'; its maximum and sum are shared by the column parts:
        // copies.
        float max[kMaxLanes], sum[kMaxLanes];
        std::copy_n(whole.max, lanes, max), std::copy_n(whole.sum, lanes, sum);
        for (int64_t i = 1; i < n_partials; ++i) {
          const PartialResult part = partial(((group - wave) * partials_a_group_ + i) * n_blocks_ + index);
          kernels_.fold({max, sum, whole.out + column, whole.out_stride, part.max, part.sum, part.out + column,
                         part.out_stride, n_columns, block.n_lanes, false, false});
        }
        kernels_.fold({state, state + lanes, block.out + column, block.out_stride, max, sum, whole.out + column,
                       whole.out_stride, n_columns, block.n_lanes, first, last});
      }
    });
    worker.barrier();
  }
}

}  // namespace fathom::cpu::fast
