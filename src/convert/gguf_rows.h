// A tensor of a GGUF file as rows to be written again.
#pragma once

#include "convert/row_source.h"
#include "io/gguf.h"

namespace fathom {

class GgufRows final : public RowSource {
 public:
  /// `model` must outlive this.
  GgufRows(const GgufModel& model, const Tensor& tensor)
      : model_(model), tensor_(tensor), row_bytes_(row_bytes(tensor.dtype, tensor.shape.last())) {}

  void read(int64_t first, int64_t count, float* out) const override;
  bool store(DType dtype, int64_t first, int64_t count, std::byte* out) const override;
  void release() const override;

 private:
  const std::byte* at(int64_t row) const { return tensor_.data + static_cast<size_t>(row) * row_bytes_; }

  const GgufModel& model_;
  Tensor tensor_;
  size_t row_bytes_;
};

}  // namespace fathom
