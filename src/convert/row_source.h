// A tensor to be written, as rows of floats that many threads may ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"
#include "core/tensor.h"

namespace fathom {

/// Rows of a tensor that are made on demand from a mapped file. Const use from many threads is fine.
class RowSource {
 public:
  virtual ~RowSource() = default;

  /// Rows [first, first + count) as floats, count * width of them.
  virtual void read(int64_t first, int64_t count, float* out) const = 0;

  /// The same rows as `dtype` stores them, where that takes no rounding and no search: a copy or another order of bits.
  /// False, and nothing written, where it does.
  virtual bool store(DType /*dtype*/, int64_t /*first*/, int64_t /*count*/, std::byte* /*out*/) const { return false; }

  /// All rows as `dtype`, one after the other, where a mapped file holds them so; else null.
  virtual const std::byte* in_place(DType /*dtype*/) const { return nullptr; }

  /// Rows that are cheap to read together: reads should begin and end at multiples of it.
  virtual int64_t quantum() const { return 1; }

  /// The tensor has been written: its pages need not stay in memory.
  virtual void release() const {}
};

/// A tensor of the file to come.
struct PlannedTensor {
  std::string name;
  Shape shape;        ///< slowest first
  DType source_type;  ///< the narrowest type that holds the source exactly; kF8_E4M3 where FP8 with scales
  std::shared_ptr<const RowSource> rows;

  int64_t n_rows() const { return shape.n_elements() / shape.last(); }
};

}  // namespace fathom
