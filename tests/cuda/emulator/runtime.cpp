#include "emulator/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

struct EmulatedEvent {};
struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};
/// What a cudaStream_t points to.
struct CUstream_st {
  std::unique_ptr<EmulatedGraph> capturing;
};

namespace fathom::emulator {
namespace {

/// A stream that waits for an event of a capturing stream captures into the same graph. One capture at a time.
CUstream_st* capture = nullptr;

size_t memory_bytes = size_t{1} << 30;
std::map<void*, size_t> allocations;  // of cudaMalloc; one thread at a time

size_t used_bytes() {
  size_t sum = 0;
  for (const auto& [p, size_bytes] : allocations) sum += size_bytes;
  return sum;
}

}  // namespace

void set_memory_bytes(size_t n) { memory_bytes = n; }

void submit(cuda::Stream stream, std::function<void()> work) {
  if (stream != nullptr && capture != nullptr) {
    capture->capturing->work.push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace fathom::emulator

using fathom::emulator::allocations;
using fathom::emulator::capture;
using fathom::emulator::memory_bytes;
using fathom::emulator::submit;
using fathom::emulator::used_bytes;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaDeviceSynchronize() { return capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess; }

cudaError_t cudaMalloc(void** p, size_t size_bytes) {
  if (size_bytes > memory_bytes - std::min(memory_bytes, used_bytes())) return cudaErrorMemoryAllocation;
  if (const cudaError_t error = cudaHostAlloc(p, size_bytes, cudaHostAllocDefault); error != cudaSuccess) return error;
  allocations.emplace(*p, size_bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  allocations.erase(p);
  return cudaFreeHost(p);
}
cudaError_t cudaHostAlloc(void** p, size_t size_bytes, unsigned) {
  *p = ::operator new (size_bytes, std::align_val_t{256}, std::nothrow);
  if (*p == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*p, 0xff, size_bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  ::operator delete (p, std::align_val_t{256});
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = memory_bytes;
  *free_bytes = memory_bytes - std::min(memory_bytes, used_bytes());
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size_bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (size_bytes > 0) submit(stream, [=] { std::memcpy(to, from, size_bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind) {
  if (capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, size_bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t size_bytes, cudaStream_t stream) {
  submit(stream, [=] { std::memset(p, value, size_bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t size_bytes) { return cudaMemsetAsync(p, value, size_bytes, nullptr); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->capturing = std::make_unique<EmulatedGraph>();
  capture = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (capture != stream) return cudaErrorInvalidValue;
  capture = nullptr;
  *graph = stream->capturing.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new EmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const auto& work : exec->work) submit(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
