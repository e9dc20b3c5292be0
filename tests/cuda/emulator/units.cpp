// Units of emulated device memory: whoever touches one that is not taken ends there and then.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/backend_parts.h"

namespace fathom::cuda {
namespace {

constexpr size_t kGranularity = 4096;

class EmulatedUnits final : public SparseRange {
 public:
  EmulatedUnits(size_t n, size_t unit_bytes, Stream stream, std::shared_ptr<uint64_t> counter)
      : stream_(stream), counter_(std::move(counter)), taken_(n) {
    stride_bytes_ = (unit_bytes + kGranularity - 1) / kGranularity * kGranularity;
    void* p = ::mmap(nullptr, n * stride_bytes_ + 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FATHOM_CHECK(p != MAP_FAILED, "no addresses");
    data_ = static_cast<std::byte*>(p);
  }
  ~EmulatedUnits() override {
    cudaStreamSynchronize(stream_);
    for (void* memory : taken_) give_back(memory);
    for (void* memory : spare_) give_back(memory);
    ::munmap(data_, taken_.size() * stride_bytes_ + 1);
  }

  void prepare(size_t n) override {
    while (spare_.size() < n) {
      void* counted = nullptr;  // what the emulated device counts
      if (cudaMalloc(&counted, stride_bytes_) != cudaSuccess) {
        cudaGetLastError();
        throw Error(ErrorCode::kNoMemory, "device: no room for recent rows");
      }
      spare_.push_back(counted);
      *counter_ += stride_bytes_;
    }
  }
  void take(size_t i) override {
    prepare(1);
    FATHOM_CHECK(taken_.at(i) == nullptr, "a unit is taken twice");
    taken_[i] = spare_.back();
    spare_.pop_back();
    ::mprotect(unit(i), stride_bytes_, PROT_READ | PROT_WRITE);
    std::memset(unit(i), 0xff, stride_bytes_);
  }
  void discard(size_t i) override {
    cudaStreamSynchronize(stream_);
    FATHOM_CHECK(taken_.at(i) != nullptr, "a unit is given back twice");
    spare_.push_back(std::exchange(taken_[i], nullptr));
    ::mprotect(unit(i), stride_bytes_, PROT_NONE);
  }

 private:
  void give_back(void* memory) {
    if (memory == nullptr) return;
    cudaFree(memory);
    *counter_ -= stride_bytes_;
  }

  const Stream stream_;
  const std::shared_ptr<uint64_t> counter_;
  std::vector<void*> taken_;  ///< of each unit; null: none
  std::vector<void*> spare_;
};

}  // namespace

std::unique_ptr<SparseRange> make_units(int, size_t n, size_t unit_bytes, std::string_view, Stream stream,
                                        std::shared_ptr<uint64_t> counter) {
  return std::make_unique<EmulatedUnits>(n, unit_bytes, stream, std::move(counter));
}

}  // namespace fathom::cuda
