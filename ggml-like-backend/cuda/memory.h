// Device memory and pinned host memory as buffers, and the way of bytes from the host to the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/buffer.h"
#include "core/dtype.h"
#include "core/threads.h"
#include "cuda/stream.h"

namespace fathom::cuda {

/// Device memory. `counter` holds the bytes of all such buffers and must outlive them. Throws Error{kNoMemory} with the
/// bytes needed and free.
std::shared_ptr<Buffer> allocate_device(size_t size_bytes, std::string_view what, std::shared_ptr<uint64_t> counter);

/// Host memory that the device copies from and to directly. Throws Error{kNoMemory}.
std::shared_ptr<Buffer> allocate_pinned(size_t size_bytes, std::string_view what);

/// A point in a stream's work that others can wait for. One that was never recorded counts as passed.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream);          ///< after all that the stream was given so far
  void let_wait(Stream stream) const;  ///< what the stream is given from now on comes after it
  void wait() const;                   ///< on the host

 private:
  void* event_;
};

/// Sends host memory to the device through two halves of pinned memory: while the device takes one, the host fills the
/// other, with several threads: one alone copies at a fraction of what the link takes.
class Uploader {
 public:
  explicit Uploader(Stream stream);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  Stream stream() const { return stream_; }
  /// The source may change when this returns.
  void send(std::byte* to, const std::byte* from, size_t size_bytes);

  static constexpr size_t kHalfBytes = size_t{16} << 20;

 private:
  /// Pinned room for size_bytes <= kHalfBytes; the copy out of it is to be enqueued before the next call.
  std::byte* room(size_t size_bytes);

  Stream stream_;
  ThreadPool threads_;
  std::shared_ptr<Buffer> pinned_;
  std::array<Event, 2> taken_;  // the device has read a half
  size_t used_ = 0;             // of the current half
  int half_ = 0;
};

constexpr size_t kWeightStagingBytes = size_t{8} << 20;  ///< rows on their way into planes

/// Sends rows of weights, packed as a file has them, to `to` in planes (weight_layout.h) on the uploader's stream.
/// `staging`: kWeightStagingBytes on the device.
void send_weights(Uploader& uploader, std::byte* staging, std::byte* to, const std::byte* from, DType dtype,
                  int64_t n_rows, int64_t n_columns);

}  // namespace fathom::cuda
