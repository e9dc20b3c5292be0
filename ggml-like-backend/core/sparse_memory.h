// A large range of memory of which only some parts are in use at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "core/buffer.h"

namespace fathom {

/// `n` units of `unit_bytes` each, `stride_bytes()` apart. A unit costs memory from its first write to the next
/// discard(); the range itself costs addresses only. Not thread-safe for one unit; different units are independent.
class SparseMemory {
 public:
  /// Throws Error{kNoMemory} naming `what` and the size.
  SparseMemory(size_t n, size_t unit_bytes, std::string_view what);
  ~SparseMemory();
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t stride_bytes() const { return stride_bytes_; }
  std::byte* unit(size_t i) const { return data_ + i * stride_bytes_; }
  /// Gives a unit's memory back to the system: it reads as zeros until it is written again.
  void discard(size_t i);

 private:
  std::byte* mapped_;
  size_t mapped_bytes_;
  std::byte* data_;
  size_t stride_bytes_;
};

}  // namespace fathom
