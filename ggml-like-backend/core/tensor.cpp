#include "core/tensor.h"

#include "core/error.h"

namespace fathom {
namespace {

/// Before a graph is bound, `data` holds an offset: plain integer arithmetic, not pointer arithmetic.
std::byte* advanced(std::byte* data, int64_t bytes) {
  return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes));
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> values) {
  FATHOM_CHECK(values.size() <= static_cast<size_t>(kMaxDims), "too many dimensions");
  for (const int64_t v : values) dims[static_cast<size_t>(rank++)] = v;
}

int64_t Shape::n_elements() const {
  if (rank == 0) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= (*this)[i];
  return n;
}

bool Shape::operator==(const Shape& other) const {
  if (rank != other.rank) return false;
  for (int i = 0; i < rank; ++i) {
    if ((*this)[i] != other[i]) return false;
  }
  return true;
}

std::string Shape::to_string() const {
  std::string s = "[";
  for (int i = 0; i < rank; ++i) s += (i == 0 ? "" : ", ") + std::to_string((*this)[i]);
  return s + "]";
}

Tensor::Tensor(DType type, Shape s, void* p) : dtype(type), shape(s), data(static_cast<std::byte*>(p)) {
  if (s.rank == 0) return;
  int64_t stride = static_cast<int64_t>(row_bytes(type, s.last()));
  strides_bytes[static_cast<size_t>(s.rank - 1)] = 0;  // within a row: block by block
  for (int i = s.rank - 2; i >= 0; --i) {
    strides_bytes[static_cast<size_t>(i)] = stride;
    stride *= s[i];
  }
  if (s.rank == 1) strides_bytes[0] = 0;
}

bool Tensor::is_contiguous() const {
  if (shape.rank < 2) return true;
  int64_t stride = static_cast<int64_t>(row_bytes(dtype, shape.last()));
  for (int i = shape.rank - 2; i >= 0; --i) {
    if (shape[i] > 1 && strides_bytes[static_cast<size_t>(i)] != stride) return false;
    stride *= shape[i];
  }
  return true;
}

size_t Tensor::size_bytes() const {
  if (shape.rank == 0 || shape.n_elements() == 0) return 0;
  return static_cast<size_t>(n_rows()) * row_bytes(dtype, shape.last());
}

std::string Tensor::describe() const { return std::string(dtype_name(dtype)) + " " + shape.to_string(); }

Tensor Tensor::slab(int64_t i) const {
  FATHOM_CHECK(shape.rank >= 2 && i >= 0 && i < shape[0], "no slab " + std::to_string(i) + " in " + describe());
  Tensor t = *this;
  t.data = advanced(data, i * strides_bytes[0]);
  t.shape.rank = shape.rank - 1;
  for (int d = 0; d < t.shape.rank; ++d) {
    t.shape.dims[static_cast<size_t>(d)] = shape[d + 1];
    t.strides_bytes[static_cast<size_t>(d)] = strides_bytes[static_cast<size_t>(d + 1)];
  }
  return t;
}

Tensor Tensor::slice(int64_t first, int64_t count) const {
  FATHOM_CHECK(shape.rank >= 2 && first >= 0 && count >= 0 && first + count <= shape[0],
               "no rows " + std::to_string(first) + "+" + std::to_string(count) + " in " + describe());
  Tensor t = *this;
  t.data = advanced(data, first * strides_bytes[0]);
  t.shape.dims[0] = count;
  return t;
}

Tensor Tensor::reshaped(Shape new_shape) const {
  FATHOM_CHECK(is_contiguous() && new_shape.n_elements() == shape.n_elements(),
               "cannot view " + describe() + " as " + new_shape.to_string());
  Tensor t(dtype, new_shape, data);
  t.value_id = value_id;
  return t;
}

}  // namespace fathom
