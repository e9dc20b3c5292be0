// What linear, gated_ffn and moe_ffn share: quantized activation rows in workspace memory, and tasks of weight rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "cpu/kernels.h"

namespace fathom::cpu::fast {

constexpr size_t kAlign = 64;
constexpr size_t align_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

/// Takes pieces of a workspace, one after the other, each aligned. With a null base it only measures.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T> T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base_ + used_);
    used_ += align_up(static_cast<size_t>(count) * sizeof(T));
    return p;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

/// Weight rows for each task: about 32 tasks a thread, so that stealing evens out a slow thread, but at least 64 KiB of
/// weights, so that a task is one long stream of reads. A multiple of 32 rows, the tallest tile of the kernels.
inline int64_t rows_per_task(int64_t n_rows, int64_t row_bytes, int n_threads) {
  const int64_t even = n_rows / (int64_t{32} * n_threads);
  const int64_t streaming = row_bytes > 0 ? 65536 / row_bytes : n_rows;
  return std::max<int64_t>(32, (std::max(even, std::min(streaming, n_rows / (int64_t{4} * n_threads))) + 31) / 32 * 32);
}

}  // namespace fathom::cpu::fast
