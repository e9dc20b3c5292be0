// Random attention steps for the tests: a paged cache with shuffled pages, several sequences, weights in file types,
// and the float64 answer.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/dequantize.h"
#include "cpu/attention.h"
#include "cpu/store_row.h"

namespace fathom::testing {

struct Sequence {
  int64_t n_past = 0;  ///< rows cached before this step
  int64_t n_new = 1;   ///< tokens of this step
};

/// Cache, step tensors and queries shared by both kinds of attention.
class PagedStep {
 public:
  PagedStep(std::vector<Sequence> sequences, int64_t page_tokens, int64_t row_elements, DType cache_type, uint32_t seed)
      : sequences_(std::move(sequences)), random_(seed) {
    int64_t n_pages = 0, widest = 0;
    for (const Sequence& s : sequences_) {
      const int64_t pages = (s.n_past + s.n_new + page_tokens - 1) / page_tokens;
      n_pages += pages, widest = std::max(widest, pages);
    }
    std::vector<int32_t> pages(static_cast<size_t>(n_pages));
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    std::shuffle(pages.begin(), pages.end(), random_);
    page_table_.assign(sequences_.size() * static_cast<size_t>(widest), -1);
    cache_ = tensor(cache_type, {n_pages, page_tokens, row_elements});
    std::memset(cache_.data, 0xff, cache_.size_bytes());  // rows that nobody stored are NaN: using one shows
    std::vector<float> row(static_cast<size_t>(row_elements));
    size_t next = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int64_t end = sequences_[s].n_past + sequences_[s].n_new;
      for (int64_t p = 0; p < end; ++p) {
        int32_t& page = page_table_[s * static_cast<size_t>(widest) + static_cast<size_t>(p / page_tokens)];
        if (p % page_tokens == 0) page = pages[next++];
        for (float& x : row) x = normal();
        cpu::store_row(cache_type, row.data(), cpu::cache_row(cache_, page * page_tokens + p % page_tokens),
                       row_elements);
        if (p >= sequences_[s].n_past) {
          positions_.push_back(static_cast<int32_t>(p));
          sequence_of_.push_back(static_cast<int32_t>(s));
        }
      }
    }
    const auto n = static_cast<int64_t>(positions_.size()), n_sequences = static_cast<int64_t>(sequences_.size());
    step_ = {Tensor(DType::kI32, {n}, positions_.data()), Tensor(), Tensor(DType::kI32, {n}, sequence_of_.data()),
             Tensor(DType::kI32, {n_sequences, widest}, page_table_.data())};
  }

  int64_t n_tokens() const { return static_cast<int64_t>(positions_.size()); }
  const std::vector<Sequence>& sequences() const { return sequences_; }
  const Tensor& cache() const { return cache_; }
  const StepTensors& step() const { return step_; }

  float normal() { return distribution_(random_); }

  /// Memory of its own for a tensor.
  Tensor tensor(DType type, Shape shape) {
    const size_t bytes = row_bytes(type, shape.last()) * static_cast<size_t>(shape.n_elements() / shape.last());
    buffers_.push_back(allocate_heap(bytes, "test"));
    return Tensor(type, shape, buffers_.back()->data());
  }

  /// Gaussian values of the given deviation in a type a cache or a small matrix can have.
  Tensor gaussian(DType type, Shape shape, float deviation) {
    const Tensor t = tensor(type, shape);
    std::vector<float> row(static_cast<size_t>(shape.last()));
    for (int64_t r = 0; r < t.n_rows(); ++r) {
      for (float& x : row) x = deviation * normal();
      cpu::store_row(type, row.data(), t.data + static_cast<size_t>(r) * row_bytes(type, shape.last()), shape.last());
    }
    return t;
  }

  /// Random codes in a block format whose f16 scales stand at the given byte offsets of a block.
  Tensor random_blocks(DType type, Shape shape, const std::vector<size_t>& scale_offsets, float scale) {
    const Tensor t = tensor(type, shape);
    const auto block = static_cast<size_t>(dtype_info(type).block_bytes);
    for (size_t i = 0; i < t.size_bytes(); ++i) t.data[i] = static_cast<std::byte>(random_() >> 8);
    for (size_t i = 0; i < t.size_bytes(); i += block) {
      for (const size_t offset : scale_offsets) {
        const uint16_t d = f32_to_f16(scale * (0.5F + 0.5F * std::fabs(normal())));
        std::memcpy(t.data + i + offset, &d, 2);
      }
    }
    return t;
  }

 private:
  std::vector<Sequence> sequences_;
  std::mt19937 random_;
  std::normal_distribution<float> distribution_;
  std::vector<int32_t> positions_, sequence_of_, page_table_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
  Tensor cache_;
  StepTensors step_;
};

/// Runs one operation as the backend does, workspaces filled with NaN before, and returns its output.
template <typename Args>
std::vector<float> run_attention(Args args, void (*op)(const Args&, cpu::OpContext&), cpu::Workspace w,
                                 const cpu::MatmulKernels* kernels, int n_threads) {
  std::vector<float> out(static_cast<size_t>(args.out.shape.n_elements()), NAN);
  args.out.data = reinterpret_cast<std::byte*>(out.data());
  w.shared_bytes = (w.shared_bytes + 127) / 64 * 64, w.per_thread_bytes = (w.per_thread_bytes + 127) / 64 * 64;
  const size_t total = w.shared_bytes + w.per_thread_bytes * static_cast<size_t>(n_threads);
  const auto buffer = allocate_heap(total, "workspace");
  std::memset(buffer->data(), 0xff, total);
  ThreadPool pool(n_threads);
  pool.run([&](Worker& worker) {
    cpu::OpContext context{
        .worker = worker,
        .matmul = kernels,
        .elements = nullptr,
        .shared = buffer->data(),
        .own = buffer->data() + w.shared_bytes + w.per_thread_bytes * static_cast<size_t>(worker.index())};
    op(args, context);
  });
  return out;
}

/// Every element of a tensor as double.
inline std::vector<double> decoded(const Tensor& t) {
  std::vector<float> row(static_cast<size_t>(t.shape.last()));
  std::vector<double> all;
  for (int64_t r = 0; r < t.n_rows(); ++r) {
    dequantize_row(t.dtype, t.data + static_cast<size_t>(r) * row_bytes(t.dtype, t.shape.last()), row.data(),
                   t.shape.last());
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

/// Cached rows 0..end of the sequence that token t belongs to, from all rows decoded.
inline const double* row_of(const PagedStep& p, const std::vector<double>& rows, int64_t t, int64_t position) {
  const int64_t page_tokens = p.cache().dim(1), s = p.step().sequence_of.as<int32_t>()[t];
  const int64_t page = p.step().page_table.row_as<int32_t>(s)[position / page_tokens];
  return rows.data() + (page * page_tokens + position % page_tokens) * p.cache().dim(2);
}

/// softmax(scores) applied to value rows.
inline std::vector<double> softmax_mix(std::vector<double> scores, const std::function<const double*(int64_t)>& value,
                                       int64_t n) {
  double largest = -HUGE_VAL, total = 0;
  for (const double s : scores) largest = std::max(largest, s);
  std::vector<double> out(static_cast<size_t>(n));
  for (size_t s = 0; s < scores.size(); ++s) {
    const double weight = std::exp(scores[s] - largest);
    total += weight;
    const double* row = value(static_cast<int64_t>(s));
    for (size_t i = 0; i < out.size(); ++i) out[i] += weight * row[i];
  }
  for (double& x : out) x /= total;
  return out;
}

/// Root of the mean squared difference, over the root of the mean squared expectation; infinite where a value is not
/// finite.
inline double relative_rms(const std::vector<float>& got, const std::vector<double>& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace fathom::testing
