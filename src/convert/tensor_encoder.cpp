#include "convert/tensor_encoder.h"

#include <algorithm>
#include <exception>
#include <future>
#include <mutex>

#include "core/error.h"
#include "core/printable.h"
#include "core/quant/quantize.h"

namespace fathom {
namespace {

constexpr size_t kBatchBytes = size_t{16} << 20;      // long enough to hide a write, short enough to stay bounded
constexpr int64_t kChunkElements = int64_t{1} << 16;  // floats of a chunk stay in the second-level cache

/// The first failure by row, so that what is reported does not depend on the threads.
class FirstFailure {
 public:
  void note(int64_t row, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (error_ == nullptr || row < row_) {
      row_ = row;
      error_ = std::move(error);
    }
  }
  bool is_set() const {
    const std::lock_guard lock(mutex_);
    return error_ != nullptr;
  }
  void rethrow() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  mutable std::mutex mutex_;
  int64_t row_ = 0;
  std::exception_ptr error_;
};

}  // namespace

TensorEncoder::TensorEncoder(int n_threads) : pool_(n_threads), scratch_(static_cast<size_t>(n_threads)) {}

void TensorEncoder::encode(const PlannedTensor& tensor, DType dtype, const ImportanceMatrix* imatrix, const Sink& sink,
                           const std::function<void()>& check) {
  const size_t width_bytes = row_bytes(dtype, tensor.shape.last());
  const int64_t n_rows = tensor.n_rows(), quantum = tensor.rows->quantum();
  const int64_t rows_fit = std::max<int64_t>(1, static_cast<int64_t>(kBatchBytes / std::max<size_t>(1, width_bytes)));
  const int64_t batch_rows = std::max(quantum, rows_fit / quantum * quantum);
  std::future<void> writing;
  int turn = 0;
  for (int64_t first = 0; first < n_rows; first += batch_rows, turn ^= 1) {
    check();
    const int64_t count = std::min(batch_rows, n_rows - first);
    std::vector<std::byte>& batch = batches_[turn];
    const size_t n_bytes = static_cast<size_t>(count) * width_bytes;
    batch.resize(std::max(batch.size(), n_bytes));
    encode_batch(tensor, dtype, imatrix, first, count, batch.data());
    if (writing.valid()) writing.get();
    writing = std::async(std::launch::async, [&sink, data = batch.data(), n_bytes] { sink(data, n_bytes); });
  }
  if (writing.valid()) writing.get();
  tensor.rows->release();
}

void TensorEncoder::encode_batch(const PlannedTensor& tensor, DType dtype, const ImportanceMatrix* imatrix,
                                 int64_t first, int64_t count, std::byte* out) {
  const int64_t width = tensor.shape.last(), quantum = tensor.rows->quantum();
  const int64_t rows_per_matrix = tensor.shape.rank >= 3 ? tensor.n_rows() / tensor.shape[0] : tensor.n_rows();
  const size_t width_bytes = row_bytes(dtype, width);
  // Chunks of whole quanta, and enough of them that every thread gets some.
  const int64_t for_all = count / (static_cast<int64_t>(pool_.size()) * 4);
  const int64_t wanted = std::min(kChunkElements / width, for_all);
  const int64_t chunk = std::max(quantum, wanted / quantum * quantum);
  FirstFailure failure;
  pool_.run([&](Worker& worker) {
    std::vector<float>& floats = scratch_[static_cast<size_t>(worker.index())];
    worker.share(count, chunk, [&](int64_t begin, int64_t end) {
      if (failure.is_set()) return;
      int64_t row = first + begin;
      try {
        if (tensor.rows->store(dtype, row, end - begin, out + static_cast<size_t>(begin) * width_bytes)) return;
        floats.resize(std::max(floats.size(), static_cast<size_t>((end - begin) * width)));
        tensor.rows->read(row, end - begin, floats.data());
        for (; row < first + end; ++row) {
          const float* importance =
              imatrix == nullptr ? nullptr : imatrix->find(tensor.name, tensor.shape, row / rows_per_matrix);
          quantize_row(dtype, floats.data() + (row - first - begin) * width,
                       out + static_cast<size_t>(row - first) * width_bytes, width, importance);
        }
      } catch (const Error& error) {
        const std::string where = "tensor " + in_quotes(tensor.name) + ", row " + std::to_string(row) + ": ";
        failure.note(row, std::make_exception_ptr(Error(error.code(), where + error.what())));
      } catch (...) {
        failure.note(row, std::current_exception());
      }
    });
  });
  failure.rethrow();
}

}  // namespace fathom
