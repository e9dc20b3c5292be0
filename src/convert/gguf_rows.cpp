#include "convert/gguf_rows.h"

#include <cstring>

#include "core/quant/dequantize.h"

namespace fathom {

void GgufRows::read(int64_t first, int64_t count, float* out) const {
  dequantize_row(tensor_.dtype, at(first), out, count * tensor_.shape.last());
}

bool GgufRows::store(DType dtype, int64_t first, int64_t count, std::byte* out) const {
  if (dtype != tensor_.dtype) return false;
  std::memcpy(out, at(first), static_cast<size_t>(count) * row_bytes_);
  return true;
}

void GgufRows::release() const {
  if (const std::optional<FileSpan> span = model_.locate(tensor_))
    span->file->advise(MappedFile::Access::kDontNeed, span->offset_bytes, span->size_bytes);
}

}  // namespace fathom
