// A large range of memory of which only some parts are in use at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "core/buffer.h"

namespace fathom {

/// Units of equal size, `stride_bytes()` apart. A unit may be used, and costs memory, from its take() to its discard();
/// the range itself costs addresses only.
class SparseRange {
 public:
  virtual ~SparseRange() = default;
  SparseRange(const SparseRange&) = delete;
  SparseRange& operator=(const SparseRange&) = delete;

  std::byte* data() const { return data_; }
  size_t stride_bytes() const { return stride_bytes_; }
  std::byte* unit(size_t i) const { return data_ + i * stride_bytes_; }

  /// Makes sure that n units can be taken. Throws Error{kNoMemory}, and nothing has changed.
  virtual void prepare(size_t n) = 0;
  virtual void take(size_t i) = 0;
  /// Whatever uses the unit has ended when this returns.
  virtual void discard(size_t i) = 0;

 protected:
  SparseRange() = default;
  std::byte* data_ = nullptr;
  size_t stride_bytes_ = 0;
};

/// The same in the host's memory, which the system gives a unit at its first write: it reads as zeros until then. Not
/// thread-safe for one unit; different units are independent.
class SparseMemory final : public SparseRange {
 public:
  /// `n` units of `unit_bytes` each. Throws Error{kNoMemory} naming `what` and the size.
  SparseMemory(size_t n, size_t unit_bytes, std::string_view what);
  ~SparseMemory() override;

  void prepare(size_t) override {}
  void take(size_t) override {}
  void discard(size_t i) override;

 private:
  std::byte* mapped_;
  size_t mapped_bytes_;
};

}  // namespace fathom
