// Matrix kernels on a GPU: time of a launch, bytes of weights read in it and what part of the device's copy bandwidth
// that is, for linear layers and mixtures of experts in the shapes of V2-Lite and V3. Launches are captured and
// replayed as in a step; weights change from launch to launch, so that they come from memory and not from the cache.
//
//   bench_cuda_matmul [linear|moe]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/matmul.h"
#include "cuda/weight_layout.h"

using namespace fathom;

namespace {

void ok(cudaError_t error) {
  if (error != cudaSuccess) throw Error(ErrorCode::kDevice, std::string("bench: ") + cudaGetErrorString(error));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) { ok(cudaMalloc(&data_, bytes)); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  /// Random bits whose halves are small numbers, so that scales are ordinary.
  void fill_random() const {
    static const std::vector<uint16_t> bits = [] {
      std::vector<uint16_t> v(8 << 20);
      std::mt19937 rng(1);
      for (uint16_t& b : v) b = static_cast<uint16_t>(rng()) & 0x9fff;
      return v;
    }();
    for (size_t at = 0; at < bytes_; at += bits.size() * 2)
      ok(cudaMemcpy(data() + at, bits.data(), std::min(bits.size() * 2, bytes_ - at), cudaMemcpyHostToDevice));
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

/// Microseconds of each of the n launches that `work` makes: captured once, replayed until half a second has passed.
double time_us(cudaStream_t stream, int n, const std::function<void()>& work) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  ok(cudaStreamEndCapture(stream, &graph));
  ok(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  ok(cudaEventCreate(&begin));
  ok(cudaEventCreate(&end));
  for (int i = 0; i < 2; ++i) ok(cudaGraphLaunch(exec, stream));
  double best = 1e30;
  for (float total_ms = 0; total_ms < 200;) {
    ok(cudaEventRecord(begin, stream));
    ok(cudaGraphLaunch(exec, stream));
    ok(cudaEventRecord(end, stream));
    ok(cudaEventSynchronize(end));
    float ms = 0;
    ok(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, static_cast<double>(ms) * 1000 / n);
    total_ms += std::max(ms, 0.5F);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return best;
}

Tensor weights(DType type, Shape shape, std::byte* data) {
  Tensor t(type, shape, data);
  const size_t last = static_cast<size_t>(shape.rank - 1);
  t.strides_bytes[last - 1] = cuda::weight_row_bytes(type, shape.last());
  if (last == 2) t.strides_bytes[0] = shape[1] * t.strides_bytes[1];
  return t;
}
size_t weight_bytes(DType type, int64_t rows, int64_t k) {
  return static_cast<size_t>(rows * cuda::weight_row_bytes(type, k));
}

struct Bench {
  cudaStream_t stream = nullptr;
  DeviceMemory workspace{size_t{2} << 30}, grids{cuda::grid_tables_bytes()},
      counters{cuda::kMatmulCounters * sizeof(int32_t)};
  double copy_gb_s = 0;

  Bench() {
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::vector<std::byte> host(cuda::grid_tables_bytes());
    cuda::write_grid_tables(host.data());
    ok(cudaMemcpy(grids.data(), host.data(), host.size(), cudaMemcpyHostToDevice));
    ok(cudaMemset(counters.data(), 0, cuda::kMatmulCounters * sizeof(int32_t)));
    const size_t half = size_t{1} << 30;
    const double us = time_us(stream, 1, [&] {
      ok(cudaMemcpyAsync(workspace.data(), workspace.data() + half, half, cudaMemcpyDeviceToDevice, stream));
    });
    copy_gb_s = 2.0 * static_cast<double>(half) / us / 1000;
    std::printf("copy in device memory: %.0f GB/s read and written\n", copy_gb_s);
  }
  cuda::MatmulContext context() const {
    return {stream, workspace.data(), grids.data(), reinterpret_cast<int32_t*>(counters.data())};
  }

  void report(const std::string& what, int n_tokens, double us, double bytes, double flop) const {
    const double gb_s = bytes / us / 1000;
    std::printf("%-44s %5d %10.2f %9.0f %6.0f %9.2f\n", what.c_str(), n_tokens, us, gb_s, 100 * gb_s / copy_gb_s,
                flop / us / 1e6);
    std::fflush(stdout);
  }

  void linear(DType type, int64_t rows, int64_t k) {
    const size_t bytes = weight_bytes(type, rows, k);
    const int n_copies = static_cast<int>(std::clamp<size_t>((size_t{512} << 20) / bytes, 2, 64));
    const DeviceMemory w(bytes * static_cast<size_t>(n_copies)), x(static_cast<size_t>(512 * k) * 4),
        out(static_cast<size_t>(512 * rows) * 4);
    w.fill_random();
    x.fill_random();
    for (const int64_t n_tokens : {1, 2, 4, 8, 16, 64, 512}) {
      const double us = time_us(stream, n_copies, [&] {
        for (int i = 0; i < n_copies; ++i) {
          const LinearArgs args{Tensor(DType::kF32, {n_tokens, k}, x.data()),
                                weights(type, {rows, k}, w.data() + bytes * static_cast<size_t>(i)),
                                Tensor(DType::kF32, {n_tokens, rows}, out.data())};
          cuda::linear(args, context());
        }
      });
      report("linear " + std::string(dtype_name(type)) + " [" + std::to_string(rows) + ", " + std::to_string(k) + "]",
             static_cast<int>(n_tokens), us, static_cast<double>(bytes),
             2.0 * static_cast<double>(n_tokens * rows * k));
    }
  }

  struct MoeShape {
    const char* name;
    int64_t hidden, width, n_experts, n_used, shared_width;
  };
  void moe(const MoeShape& s, DType in, DType down) {
    const size_t in_bytes = weight_bytes(in, s.width, s.hidden), down_bytes = weight_bytes(down, s.hidden, s.width),
                 expert = 2 * in_bytes + down_bytes;
    const size_t shared_in = weight_bytes(in, s.shared_width, s.hidden),
                 shared = 2 * shared_in + weight_bytes(down, s.hidden, s.shared_width);
    const auto n = static_cast<size_t>(s.n_experts);
    const DeviceMemory w(n * expert), shared_w(shared);
    w.fill_random();
    shared_w.fill_random();
    const GatedFfnWeights experts{weights(in, {s.n_experts, s.width, s.hidden}, w.data()),
                                  weights(in, {s.n_experts, s.width, s.hidden}, w.data() + n * in_bytes),
                                  weights(down, {s.n_experts, s.hidden, s.width}, w.data() + 2 * n * in_bytes)};
    const GatedFfnWeights shared_experts{weights(in, {s.shared_width, s.hidden}, shared_w.data()),
                                         weights(in, {s.shared_width, s.hidden}, shared_w.data() + shared_in),
                                         weights(down, {s.hidden, s.shared_width}, shared_w.data() + 2 * shared_in)};
    constexpr int kLaunches = 16;
    constexpr int64_t kMost = 2048;
    const DeviceMemory x(static_cast<size_t>(kMost * s.hidden) * 4), out(static_cast<size_t>(kMost * s.hidden) * 4);
    const DeviceMemory ids(static_cast<size_t>(kLaunches * kMost * s.n_used) * 4),
        route_weights(static_cast<size_t>(kMost * s.n_used) * 4);
    x.fill_random();
    route_weights.fill_random();
    std::mt19937 rng(2);
    for (const int64_t n_tokens :
         {int64_t{1}, int64_t{2}, int64_t{4}, int64_t{8}, int64_t{16}, int64_t{128}, int64_t{512}, kMost}) {
      std::vector<int32_t> host;
      double n_active = 0;
      for (int i = 0; i < kLaunches; ++i) {
        std::set<int32_t> active;
        for (int64_t t = 0; t < n_tokens; ++t) {
          std::vector<int32_t> all(n);
          for (size_t e = 0; e < n; ++e) all[e] = static_cast<int32_t>(e);
          for (int64_t j = 0; j < s.n_used; ++j) {
            std::swap(all[static_cast<size_t>(j)], all[static_cast<size_t>(j) + rng() % (n - static_cast<size_t>(j))]);
            host.push_back(all[static_cast<size_t>(j)]);
            active.insert(host.back());
          }
        }
        n_active += static_cast<double>(active.size()) / kLaunches;
      }
      ok(cudaMemcpy(ids.data(), host.data(), host.size() * 4, cudaMemcpyHostToDevice));
      const double us = time_us(stream, kLaunches, [&] {
        for (int i = 0; i < kLaunches; ++i) {
          const Shape rows{n_tokens, s.hidden}, routes{n_tokens, s.n_used};
          const MoeFfnArgs args{
              Tensor(DType::kF32, rows, x.data()),
              Tensor(DType::kI32, routes, ids.data() + static_cast<size_t>(i * n_tokens * s.n_used) * 4),
              Tensor(DType::kF32, routes, route_weights.data()),
              experts,
              shared_experts,
              Tensor(DType::kF32, rows, out.data())};
          FATHOM_CHECK(cuda::moe_ffn_workspace(args) <= size_t{2} << 30, "workspace");
          cuda::moe_ffn(args, context());
        }
      });
      const double flop = 6.0 * static_cast<double>(n_tokens * s.hidden * (s.n_used * s.width + s.shared_width));
      report(std::string("moe ") + s.name + " " + std::string(dtype_name(in)) + "/" + std::string(dtype_name(down)),
             static_cast<int>(n_tokens), us, n_active * static_cast<double>(expert) + static_cast<double>(shared),
             flop);
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  try {
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0)
      throw Error(ErrorCode::kDevice, "bench: no CUDA device");
    Bench bench;
    std::printf("%-44s %5s %10s %9s %6s %9s\n", "", "T", "us", "GB/s", "%copy", "TFLOP/s");
    if (only.empty() || only == "moe") {
      const Bench::MoeShape v2_lite{"v2-lite", 2048, 1408, 64, 6, 2816}, v3{"v3", 7168, 2048, 256, 8, 2048};
      bench.moe({"v2-lite", 2048, 1408, 64, 6, 2816}, DType::kQ8_0, DType::kQ8_0);
      bench.moe({"v2-lite*", 2048, 1536, 64, 6, 3072}, DType::kQ4_K,
                DType::kQ4_K);  // 1536: a width that K formats can have
      bench.moe({"v2-lite*", 2048, 1536, 64, 6, 3072}, DType::kQ4_K, DType::kQ6_K);
      bench.moe(v2_lite, DType::kQ4_K, DType::kQ5_0);
      bench.moe(v3, DType::kQ4_K, DType::kQ6_K);
      bench.moe(v3, DType::kIQ2_XXS, DType::kQ2_K);
    }
    if (only.empty() || only == "linear") {
      for (const DType type : {DType::kQ4_K, DType::kQ6_K, DType::kQ8_0, DType::kQ5_0, DType::kBF16}) {
        bench.linear(type, 3072, 2048);
        bench.linear(type, 576, 2048);
        bench.linear(type, 102400, 2048);
      }
      for (const DType type : {DType::kQ4_K, DType::kQ5_K, DType::kIQ4_XS, DType::kIQ3_S, DType::kIQ2_S, DType::kIQ1_M,
                               DType::kMXFP4, DType::kF32})
        bench.linear(type, 7168, 16384);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
