#include "emulator/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

/// What a cudaEvent_t points to. Streams hold its state: it may be destroyed while they do.
struct EmulatedEvent {
  struct State {
    CUstream_st* stream = nullptr;  ///< of the last record
    uint64_t recorded = 0, passed = 0;
  };
  std::shared_ptr<State> state = std::make_shared<State>();
};
struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};
/// What a cudaStream_t points to.
struct CUstream_st {
  struct Item {
    std::function<void()> work;
    std::shared_ptr<EmulatedEvent::State> awaited{};  ///< until it has passed so often
    uint64_t times = 0;
  };
  std::deque<Item> queue;
  std::unique_ptr<EmulatedGraph> capturing;
};

namespace fathom::emulator {
namespace {

/// A stream that waits for an event of a capturing stream captures into the same graph. One capture at a time.
CUstream_st* capture = nullptr;

std::vector<CUstream_st*> streams;  // by age
StreamOrder order = StreamOrder::kAtOnce;

size_t memory_bytes = size_t{1} << 30;
std::map<void*, size_t> allocations;  // of cudaMalloc; one thread at a time

size_t used_bytes() {
  size_t sum = 0;
  for (const auto& [p, size_bytes] : allocations) sum += size_bytes;
  return sum;
}

bool is_late(const CUstream_st* stream) {
  const bool is_first = !streams.empty() && stream == streams.front();
  return order == StreamOrder::kLate || order == (is_first ? StreamOrder::kFirstLate : StreamOrder::kOthersLate);
}

/// Runs the stream as far as it goes without others, and with `helps` those it waits for; until `event` has passed so
/// often, or to its end.
void run(CUstream_st& stream, bool helps, const EmulatedEvent::State* event = nullptr, uint64_t times = 0) {
  while (!stream.queue.empty() && (event == nullptr || event->passed < times)) {
    const CUstream_st::Item& head = stream.queue.front();
    if (head.awaited && head.awaited->passed < head.times) {
      if (!helps) return;
      const std::shared_ptr<EmulatedEvent::State> awaited = head.awaited;
      run(*awaited->stream, true, awaited.get(), head.times);
    }
    const CUstream_st::Item item = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (item.work) item.work();
  }
}

void enqueue(CUstream_st* stream, CUstream_st::Item item) {
  stream->queue.push_back(std::move(item));
  if (!is_late(stream)) run(*stream, order == StreamOrder::kAtOnce);
}

void run_all() {
  for (CUstream_st* stream : streams) run(*stream, true);
}

}  // namespace

void set_memory_bytes(size_t n) { memory_bytes = n; }
void set_stream_order(StreamOrder o) { order = o; }

void submit(cuda::Stream stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  if (capture != nullptr) {
    capture->capturing->work.push_back(std::move(work));
  } else {
    enqueue(stream, {std::move(work)});
  }
}

}  // namespace fathom::emulator

using fathom::emulator::allocations;
using fathom::emulator::capture;
using fathom::emulator::enqueue;
using fathom::emulator::memory_bytes;
using fathom::emulator::run;
using fathom::emulator::run_all;
using fathom::emulator::streams;
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
cudaError_t cudaDeviceSynchronize() {
  if (capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  run_all();
  return cudaSuccess;
}

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
  run_all();
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
  streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run(*stream, true);
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  if (stream != nullptr) run(*stream, true);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (capture == nullptr) enqueue(stream, {{}, event->state, event->state->recorded});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (capture != nullptr) return cudaSuccess;
  event->state->stream = stream;
  ++event->state->recorded;
  submit(stream, [state = event->state] { ++state->passed; });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  const auto& [stream, recorded, passed] = *event->state;
  if (passed < recorded) run(*stream, true, event->state.get(), recorded);
  return cudaSuccess;
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
