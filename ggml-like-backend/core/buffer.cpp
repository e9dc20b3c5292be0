#include "core/buffer.h"

#include <sys/mman.h>

#include <string>

#include "core/error.h"

namespace fathom {
namespace {

class HeapBuffer final : public Buffer {
 public:
  HeapBuffer(std::byte* data, size_t size_bytes, size_t mapped_bytes)
      : Buffer(data, size_bytes), mapped_bytes_(mapped_bytes) {}
  ~HeapBuffer() override { ::munmap(data_, mapped_bytes_); }
  BufferKind kind() const override { return BufferKind::kHeap; }

 private:
  size_t mapped_bytes_;
};

}  // namespace

std::shared_ptr<Buffer> allocate_heap(size_t size_bytes, std::string_view what) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t mapped = size_bytes == 0 ? 4096 : size_bytes;
  void* p = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    throw Error(ErrorCode::kNoMemory, "memory: no room for " + std::string(what) + "; expected " +
                                          std::to_string(size_bytes) +
                                          " bytes, got a refusal by the system; try a smaller context or model");
  }
  if (mapped >= kHugePage) ::madvise(p, mapped, MADV_HUGEPAGE);
  return std::make_shared<HeapBuffer>(static_cast<std::byte*>(p), size_bytes, mapped);
}

}  // namespace fathom
