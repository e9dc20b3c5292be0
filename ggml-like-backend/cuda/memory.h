// Device memory and pinned host memory as buffers, and the way of bytes from the host to the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/buffer.h"
#include "cuda/stream.h"

namespace fathom::cuda {

/// Device memory. `counter` holds the bytes of all such buffers and must outlive them. Throws Error{kNoMemory} with the
/// bytes needed and free.
std::shared_ptr<Buffer> allocate_device(size_t size_bytes, std::string_view what, std::shared_ptr<uint64_t> counter);

/// Host memory that the device copies from and to directly. Throws Error{kNoMemory}.
std::shared_ptr<Buffer> allocate_pinned(size_t size_bytes, std::string_view what);

/// Sends host memory to the device through two halves of pinned memory: while the device takes one, the host fills the
/// other.
class Uploader {
 public:
  explicit Uploader(Stream stream);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  /// The source may change when this returns.
  void send(std::byte* to, const std::byte* from, size_t size_bytes);

  static constexpr size_t kHalfBytes = size_t{16} << 20;

 private:
  /// Pinned room for size_bytes <= kHalfBytes; the copy out of it is to be enqueued before the next call.
  std::byte* room(size_t size_bytes);

  Stream stream_;
  std::shared_ptr<Buffer> pinned_;
  std::array<void*, 2> taken_{};  // events: the device has read a half
  size_t used_ = 0;               // of the current half
  int half_ = 0;
};

}  // namespace fathom::cuda
