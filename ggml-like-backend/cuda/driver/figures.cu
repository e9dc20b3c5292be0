// What a device can do at best: reads and copies of its memory, the way to the host and back, tensor cores, the
// shortest step.
#include <algorithm>
#include <chrono>
#include <functional>

#include "cuda/backend_parts.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.h"
#include "cuda/driver/probe.h"
#include "cuda/memory.h"

namespace fathom {
namespace cuda {
namespace {

constexpr size_t kMostMemoryBytes = size_t{1} << 30;  // far above every second-level cache
constexpr size_t kHostBytes = size_t{128} << 20;
constexpr int kThreads = 512, kPasses = 5;

/// Sums all of memory; the sum is stored only if it is a number that it never is.
FATHOM_KERNEL(kThreads, 2) read_kernel(const int4* memory, int64_t n, int* never) {
  int sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += 4 * step) {
    int4 v[4];
    for (int j = 0; j < 4; ++j) v[j] = i + j * step < n ? load_streaming(memory + i + j * step) : make_int4(0, 0, 0, 0);
    for (int j = 0; j < 4; ++j) sum += v[j].x + v[j].y + v[j].z + v[j].w;
  }
  if (sum == 0x7eadbeef) *never = sum;
}

constexpr int kMmaSteps = 2048;

FATHOM_KERNEL(256, 2) mma_kernel(float* never) {
  float c[8][4] = {};
  const uint32_t a[4] = {0, 0, 0, 0}, b[2] = {threadIdx.x, 0};
  for (int step = 0; step < kMmaSteps; ++step) {
    for (int i = 0; i < 8; ++i) mma_bf16_16x8x16(c[i], a, b);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == 12345.0F) *never = sum;
}

FATHOM_KERNEL(32, 1) nothing_kernel(int* p) {
  if (p == nullptr && threadIdx.x == 77) __syncwarp();
}

/// Shortest of some passes of what `enqueue` puts on the stream, in seconds; the first does not count.
double best_seconds(Stream stream, const std::function<void()>& enqueue) {
  double best = 1e30;
  for (int pass = 0; pass <= kPasses; ++pass) {
    check_runtime(cudaStreamSynchronize(stream), "measuring");
    const auto start = std::chrono::steady_clock::now();
    enqueue();
    check_runtime(cudaStreamSynchronize(stream), "measuring");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (pass > 0 && seconds < best) best = seconds;
  }
  return best;
}

}  // namespace

bool kernels_run_here() {
  cudaFuncAttributes attributes{};
  const bool runs = cudaFuncGetAttributes(&attributes, nothing_kernel) == cudaSuccess;
  cudaGetLastError();
  return runs;
}

}  // namespace cuda

CudaFigures measure_cuda_device(int device) {
  using namespace cuda;
  check_runtime(cudaSetDevice(device), "opening the device");
  cudaStream_t stream = nullptr;
  check_runtime(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  const std::shared_ptr<cudaStream_t> closed(&stream, [](cudaStream_t* s) { cudaStreamDestroy(*s); });
  const auto counter = std::make_shared<uint64_t>(0);
  // A model may have taken most of it.
  size_t free_bytes = 0, total_bytes = 0;
  check_runtime(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
  const size_t memory_bytes = std::min(kMostMemoryBytes, std::max(free_bytes / 4, kHostBytes) / 4096 * 4096);
  const auto a = allocate_device(memory_bytes, "measuring", counter),
             b = allocate_device(memory_bytes, "measuring", counter);
  const auto host = allocate_pinned(kHostBytes, "measuring");
  check_runtime(cudaMemsetAsync(a->data(), 0, memory_bytes, stream), "measuring");
  cudaDeviceProp properties{};
  check_runtime(cudaGetDeviceProperties(&properties, device), "measuring");
  const auto n_sm = static_cast<unsigned>(properties.multiProcessorCount);

  CudaFigures f;
  const double gb = static_cast<double>(memory_bytes) / 1e9, host_gb = static_cast<double>(kHostBytes) / 1e9;
  // Several in a row, so that starting and waiting do not count.
  constexpr int kInARow = 4;
  auto in_a_row = [](const std::function<void()>& once) {
    return [once] {
      for (int i = 0; i < kInARow; ++i) once();
    };
  };
  f.read_gb_s =
      kInARow * gb / best_seconds(stream, in_a_row([&] {
                                    launch(read_kernel, dim3(4 * n_sm), dim3(kThreads), 0, stream,
                                           reinterpret_cast<const int4*>(a->data()),
                                           static_cast<int64_t>(memory_bytes / 16), reinterpret_cast<int*>(b->data()));
                                  }));
  f.copy_gb_s = kInARow * gb / best_seconds(stream, in_a_row([&] {
                                              check_runtime(cudaMemcpyAsync(b->data(), a->data(), memory_bytes,
                                                                            cudaMemcpyDeviceToDevice, stream),
                                                            "measuring");
                                            }));
  f.upload_gb_s = host_gb / best_seconds(stream, [&] {
                    check_runtime(cudaMemcpyAsync(a->data(), host->data(), kHostBytes, cudaMemcpyHostToDevice, stream),
                                  "measuring");
                  });
  f.download_gb_s =
      host_gb / best_seconds(stream, [&] {
        check_runtime(cudaMemcpyAsync(host->data(), a->data(), kHostBytes, cudaMemcpyDeviceToHost, stream),
                      "measuring");
      });
  const double operations =
      2.0 * 16 * 8 * 16 * 8 * kMmaSteps * 8 * (2.0 * n_sm);  // a product's, 8 chains, steps, 8 warps, blocks
  f.bf16_gop_s = operations / 1e9 / best_seconds(stream, [&] {
                   launch(mma_kernel, dim3(2 * n_sm), dim3(256), 0, stream, reinterpret_cast<float*>(b->data()));
                 });

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_runtime(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "measuring");
  launch(nothing_kernel, dim3(1), dim3(32), 0, stream, static_cast<int*>(nullptr));
  check_runtime(cudaStreamEndCapture(stream, &graph), "measuring");
  check_runtime(cudaGraphInstantiate(&exec, graph, 0), "measuring");
  f.step_us = 1e6 * best_seconds(stream, [&] { check_runtime(cudaGraphLaunch(exec, stream), "measuring"); });
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return f;
}

}  // namespace fathom
