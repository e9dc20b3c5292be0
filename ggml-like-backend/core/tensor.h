// A view of typed numbers: dtype, shape, strides and where the bytes are. Owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/dtype.h"

namespace fathom {

constexpr int kMaxDims = 4;

/// Dimensions slowest first. rank 0 means "no tensor".
struct Shape {
  std::array<int64_t, kMaxDims> dims{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> values);
  int64_t operator[](int i) const { return dims[static_cast<size_t>(i)]; }
  int64_t last() const { return dims[static_cast<size_t>(rank - 1)]; }
  int64_t n_elements() const;
  bool operator==(const Shape& other) const;
  std::string to_string() const;  ///< "[12, 576]"
};

/// Rows (the last dimension) are always contiguous; the other dimensions step by strides_bytes.
/// A graph value has value_id >= 0 and gets its address from the graph's memory plan; a leaf has an address from the
/// start. The viewed memory must outlive every use. Copying a Tensor copies the view.
struct Tensor {
  DType dtype = DType::kF32;
  Shape shape;
  std::array<int64_t, kMaxDims> strides_bytes{};
  std::byte* data = nullptr;
  int32_t value_id = kLeaf;

  static constexpr int32_t kLeaf = -1;

  Tensor() = default;
  /// A contiguous tensor at `data`.
  Tensor(DType dtype, Shape shape, void* data);

  explicit operator bool() const { return shape.rank > 0; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t n_rows() const { return shape.rank == 0 ? 0 : shape.n_elements() / (shape.last() == 0 ? 1 : shape.last()); }
  bool is_contiguous() const;
  size_t size_bytes() const;     ///< bytes of the elements, without gaps
  std::string describe() const;  ///< "f32 [12, 576]"

  template <typename T> T* as() const { return reinterpret_cast<T*>(data); }
  /// Address of row i of a rank-2 tensor, or of slab i of a higher one.
  std::byte* row(int64_t i) const { return data + i * strides_bytes[0]; }
  template <typename T> T* row_as(int64_t i) const { return reinterpret_cast<T*>(row(i)); }
  /// Slab i of the slowest dimension: rank goes down by one.
  Tensor slab(int64_t i) const;
  /// Rows [first, first + count) of the slowest dimension, same rank.
  Tensor slice(int64_t first, int64_t count) const;
  /// The same bytes under another shape; only for contiguous tensors with equal element counts (checked).
  Tensor reshaped(Shape new_shape) const;
};

}  // namespace fathom
