// The part of the CUDA runtime that the backend's host code uses, on host memory. A stream runs what it is given at
// once or as late as the runtime allows it, or remembers it while its graph is captured.
// tests/cuda/emulator/include/cuda_runtime.h makes it what <cuda_runtime.h> finds.
#pragma once

#include <cstddef>
#include <functional>

#include "cuda/stream.h"
#include "emulator/block.h"

namespace fathom::emulator {

/// Runs the work, or notes it in the graph that the stream captures.
void submit(cuda::Stream stream, std::function<void()> work);

/// When streams run what they are given. What is late runs when somebody waits for it, not before: what does not wait
/// for it finds memory as it was.
enum class StreamOrder {
  kAtOnce,      ///< at first
  kLate,        ///< all streams
  kFirstLate,   ///< the first that there is now, the others at once
  kOthersLate,  ///< all but the first
};
void set_stream_order(StreamOrder order);

/// Memory that the device has from now on; 1 GiB at first.
void set_memory_bytes(size_t n);

}  // namespace fathom::emulator

using cudaStream_t = fathom::cuda::Stream;
using cudaEvent_t = struct EmulatedEvent*;
using cudaGraph_t = struct EmulatedGraph*;
using cudaGraphExec_t = struct EmulatedGraph*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidValue = 1,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceSynchronize();

/// 256-byte aligned, filled with NaN bytes.
cudaError_t cudaMalloc(void** p, size_t size_bytes);
template <typename T> cudaError_t cudaMalloc(T** p, size_t size_bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), size_bytes);
}
cudaError_t cudaFree(void* p);
cudaError_t cudaHostAlloc(void** p, size_t size_bytes, unsigned flags);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);

cudaError_t cudaMemcpy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* p, int value, size_t size_bytes);
cudaError_t cudaMemsetAsync(void* p, int value, size_t size_bytes, cudaStream_t stream = nullptr);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
