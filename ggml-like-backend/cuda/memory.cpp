#include "cuda/memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/plain_text.h"
#include "cuda/backend_parts.h"

namespace fathom::cuda {
namespace {

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(std::byte* data, size_t size_bytes, std::shared_ptr<uint64_t> counter)
      : Buffer(data, size_bytes), counter_(std::move(counter)) {
    *counter_ += size_bytes;
  }
  ~DeviceBuffer() override {
    cudaFree(data_);
    *counter_ -= size_bytes_;
  }
  BufferKind kind() const override { return BufferKind::kDevice; }

 private:
  std::shared_ptr<uint64_t> counter_;
};

class PinnedBuffer final : public Buffer {
 public:
  PinnedBuffer(std::byte* data, size_t size_bytes) : Buffer(data, size_bytes) {}
  ~PinnedBuffer() override { cudaFreeHost(data_); }
  BufferKind kind() const override { return BufferKind::kPinnedHost; }
};

}  // namespace

std::shared_ptr<Buffer> allocate_device(size_t size_bytes, std::string_view what, std::shared_ptr<uint64_t> counter) {
  void* p = nullptr;
  const cudaError_t error = cudaMalloc(&p, std::max<size_t>(size_bytes, 256));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or the next call would report it again
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error(ErrorCode::kNoMemory, "device: no room for " + std::string(what) + "; expected " + mib(size_bytes) +
                                          " free, got " + mib(free_bytes) + " of " + mib(total_bytes) +
                                          "; try --backend cpu, a smaller --ctx or a smaller type of the model");
  }
  check_runtime(error, "taking device memory");
  return std::make_shared<DeviceBuffer>(static_cast<std::byte*>(p), size_bytes, std::move(counter));
}

std::shared_ptr<Buffer> allocate_pinned(size_t size_bytes, std::string_view what) {
  void* p = nullptr;
  const cudaError_t error = cudaHostAlloc(&p, std::max<size_t>(size_bytes, 256), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ErrorCode::kNoMemory, "memory: no pinned memory for " + std::string(what) + "; expected " +
                                          mib(size_bytes) + "; try ending other programs");
  }
  check_runtime(error, "taking pinned memory");
  return std::make_shared<PinnedBuffer>(static_cast<std::byte*>(p), size_bytes);
}

Uploader::Uploader(Stream stream) : stream_(stream), pinned_(allocate_pinned(2 * kHalfBytes, "copies to the device")) {
  for (void*& event : taken_) {
    cudaEvent_t e = nullptr;
    check_runtime(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "making an event");
    event = e;
  }
}

Uploader::~Uploader() {
  cudaStreamSynchronize(stream_);
  for (void* event : taken_) cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

std::byte* Uploader::room(size_t size_bytes) {
  const size_t aligned = (size_bytes + 255) / 256 * 256;
  if (used_ + aligned > kHalfBytes) {
    check_runtime(cudaEventRecord(static_cast<cudaEvent_t>(taken_[static_cast<size_t>(half_)]), stream_),
                  "noting a copy");
    half_ ^= 1;
    used_ = 0;
    // An event that was never recorded counts as passed.
    check_runtime(cudaEventSynchronize(static_cast<cudaEvent_t>(taken_[static_cast<size_t>(half_)])),
                  "waiting for a copy");
  }
  std::byte* p = pinned_->data() + static_cast<size_t>(half_) * kHalfBytes + used_;
  used_ += aligned;
  return p;
}

void Uploader::send(std::byte* to, const std::byte* from, size_t size_bytes) {
  for (size_t at = 0; at < size_bytes; at += kHalfBytes / 4) {
    const size_t n = std::min(kHalfBytes / 4, size_bytes - at);
    std::byte* p = room(n);
    std::memcpy(p, from + at, n);
    check_runtime(cudaMemcpyAsync(to + at, p, n, cudaMemcpyHostToDevice, stream_), "copying to the device");
  }
}

}  // namespace fathom::cuda
