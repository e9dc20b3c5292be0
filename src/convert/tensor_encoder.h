// Rows of a tensor, encoded by all threads while the batch before goes to the disk.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "convert/imatrix.h"
#include "convert/row_source.h"
#include "core/threads.h"

namespace fathom {

/// One thread at a time; scratch memory is kept between tensors: two batches of kBatchBytes and a chunk of floats a
/// thread.
class TensorEncoder {
 public:
  explicit TensorEncoder(int n_threads);

  /// Called with encoded bytes in order, from another thread while the next batch is computed; never twice at once.
  using Sink = std::function<void(const std::byte* data, size_t n_bytes)>;

  /// Encodes every row as `dtype`, with importances where `imatrix` is given and has the tensor. `check` is called
  /// between batches and may throw. Throws what reading or encoding a row throws, with the tensor's name before it; the
  /// first row wins.
  void encode(const PlannedTensor& tensor, DType dtype, const ImportanceMatrix* imatrix, const Sink& sink,
              const std::function<void()>& check);

 private:
  void encode_batch(const PlannedTensor& tensor, DType dtype, const ImportanceMatrix* imatrix, int64_t first,
                    int64_t count, std::byte* out);

  ThreadPool pool_;
  std::vector<std::vector<float>> scratch_;  ///< by thread
  std::vector<std::byte> batches_[2];
};

}  // namespace fathom
