// Owned memory that tensors view.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace fathom {

enum class BufferKind { kHeap, kMappedFile, kPinnedHost, kDevice };

/// A run of bytes with an owner. Tensors that view it must not outlive it. Const use from many threads is fine.
class Buffer {
 public:
  virtual ~Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  virtual BufferKind kind() const = 0;
  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 protected:
  Buffer(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  std::byte* data_;
  size_t size_bytes_;
};

/// Zeroed anonymous memory, 64-byte aligned; 2 MiB or more asks for transparent huge pages. Pages cost memory only when
/// touched. Throws Error{kNoMemory} naming `what` and the size.
std::shared_ptr<Buffer> allocate_heap(size_t size_bytes, std::string_view what);

}  // namespace fathom
