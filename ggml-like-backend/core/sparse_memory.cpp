#include "core/sparse_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <limits>
#include <string>

#include "core/error.h"

namespace fathom {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t align_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

SparseMemory::SparseMemory(size_t n, size_t unit_bytes, std::string_view what) {
  // A huge page that two units share would be given back with neither; small units do without them.
  const size_t align = unit_bytes >= 4 * kHugePage ? kHugePage : kPage;
  stride_bytes_ = align_up(unit_bytes, align);
  const bool too_many = n > (std::numeric_limits<size_t>::max() / 2) / stride_bytes_;
  mapped_bytes_ = too_many ? 0 : n * stride_bytes_ + align;
  void* p = too_many ? MAP_FAILED
                     : ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    throw Error(ErrorCode::kNoMemory, "memory: no addresses for " + std::string(what) + "; expected " +
                                          std::to_string(n) + " times " + std::to_string(stride_bytes_) +
                                          " bytes, got a refusal by the system; try a smaller context");
  }
  ::madvise(p, mapped_bytes_, align == kHugePage ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  mapped_ = static_cast<std::byte*>(p);
  data_ = reinterpret_cast<std::byte*>(align_up(reinterpret_cast<uintptr_t>(p), align));
}

SparseMemory::~SparseMemory() { ::munmap(mapped_, mapped_bytes_); }

void SparseMemory::discard(size_t i) { ::madvise(unit(i), stride_bytes_, MADV_DONTNEED); }

}  // namespace fathom
