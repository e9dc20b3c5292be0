#include "cuda/memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/plain_text.h"
#include "cuda/backend_parts.h"
#include "cuda/matmul.h"
#include "cuda/weight_layout.h"

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

/// More gain little: memory reads and writes are the bound.
constexpr int kMostCopyingThreads = 4;
constexpr int64_t kCopyPiece = int64_t{256} << 10;  // of a thread at a time

void copy_with(ThreadPool& threads, std::byte* to, const std::byte* from, size_t size_bytes) {
  const auto n = static_cast<int64_t>(size_bytes);
  const auto copy = [&](Worker& worker) {
    worker.share(n, kCopyPiece, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
    });
  };
  n <= kCopyPiece ? threads.run_alone(copy) : threads.run(copy);
}

cudaEvent_t handle(void* event) { return static_cast<cudaEvent_t>(event); }

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

Event::Event() {
  cudaEvent_t event = nullptr;
  check_runtime(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  event_ = event;
}
Event::~Event() { cudaEventDestroy(handle(event_)); }
void Event::record(Stream stream) { check_runtime(cudaEventRecord(handle(event_), stream), "noting an event"); }
void Event::let_wait(Stream stream) const {
  check_runtime(cudaStreamWaitEvent(stream, handle(event_), 0), "waiting for an event");
}
void Event::wait() const { check_runtime(cudaEventSynchronize(handle(event_)), "waiting for an event"); }

Uploader::Uploader(Stream stream)
    : stream_(stream),
      threads_(std::min(kMostCopyingThreads, usable_physical_cores())),
      pinned_(allocate_pinned(2 * kHalfBytes, "copies to the device")) {}

Uploader::~Uploader() { cudaStreamSynchronize(stream_); }

std::byte* Uploader::room(size_t size_bytes) {
  const size_t aligned = (size_bytes + 255) / 256 * 256;
  if (used_ + aligned > kHalfBytes) {
    taken_[static_cast<size_t>(half_)].record(stream_);
    half_ ^= 1;
    used_ = 0;
    taken_[static_cast<size_t>(half_)].wait();
  }
  std::byte* p = pinned_->data() + static_cast<size_t>(half_) * kHalfBytes + used_;
  used_ += aligned;
  return p;
}

void Uploader::send(std::byte* to, const std::byte* from, size_t size_bytes) {
  for (size_t at = 0; at < size_bytes; at += kHalfBytes / 4) {
    const size_t n = std::min(kHalfBytes / 4, size_bytes - at);
    std::byte* p = room(n);
    copy_with(threads_, p, from + at, n);
    check_runtime(cudaMemcpyAsync(to + at, p, n, cudaMemcpyHostToDevice, stream_), "copying to the device");
  }
}

void send_weights(Uploader& uploader, std::byte* staging, std::byte* to, const std::byte* from, DType dtype,
                  int64_t n_rows, int64_t n_columns) {
  const size_t file_row = row_bytes(dtype, n_columns);
  const auto device_row = static_cast<size_t>(weight_row_bytes(dtype, n_columns));
  FATHOM_CHECK(file_row > 0 && file_row <= kWeightStagingBytes, "a weight row of more than 8 MiB");
  const auto rows_each = static_cast<int64_t>(kWeightStagingBytes / file_row);
  for (int64_t row = 0; row < n_rows; row += rows_each) {
    const int64_t n = std::min(rows_each, n_rows - row);
    uploader.send(staging, from + static_cast<size_t>(row) * file_row, static_cast<size_t>(n) * file_row);
    arrange_weights(dtype, staging, n, n_columns, to + static_cast<size_t>(row) * device_row, uploader.stream());
  }
}

}  // namespace fathom::cuda
