#include "cpu/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>

#include "core/buffer.h"
#include "core/threads.h"
#include "cpu/kernels.h"
#include "cpu/machine_loops.h"

namespace fathom {
namespace {

using namespace cpu;

constexpr size_t kReadBytes = size_t{384} << 20;  // 12 times a large last-level cache of one core complex
constexpr size_t kCopyBytes = size_t{64} << 20;
constexpr int kPasses = 7;

uint64_t plain_read(const std::byte* p, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i += 8) {
    uint64_t word;
    std::memcpy(&word, p + i, 8);
    sum ^= word;
  }
  return sum;
}

double plain_f32(int64_t n) {
  float acc[8] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (float& a : acc) a = a * 0.999F + 1.0F;
  }
  volatile float sink = acc[0];
  (void)sink;
  return static_cast<double>(n) * 16;
}

double plain_int8(int64_t n) {
  int acc[8] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int& a : acc) a += static_cast<int8_t>(i) * static_cast<int8_t>(a);
  }
  volatile int sink = acc[0];
  (void)sink;
  return static_cast<double>(n) * 16;
}

constexpr MachineLoops kPlainLoops = {"scalar", plain_read, plain_int8, plain_f32};

MachineLoops best_loops() {
  const std::vector<std::string> isas = matmul_isa_names();
  if (isas.empty()) return kPlainLoops;
  if (isas.front() == "avx512") return avx512::machine_loops;
  if (isas.front() == "avx2") return avx2::machine_loops;
  return {"avx_vnni", avx2::machine_loops.read, avx_vnni::int8_loop, avx2::machine_loops.f32};
}

/// Most `amount` per second over the passes, where fn returns the amount this thread did.
double best_rate(ThreadPool& pool, const std::function<double(Worker&)>& fn) {
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::atomic<double> total{0};
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](Worker& w) { total.fetch_add(fn(w)); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, total.load() / seconds);
  }
  return best;
}

}  // namespace

MachineFigures measure_machine(int n_threads) {
  const MachineLoops loops = best_loops();
  ThreadPool all(n_threads), one(1);
  MachineFigures f;
  f.n_threads = n_threads;
  f.isa = loops.isa;

  const auto buffer = allocate_heap(kReadBytes + kCopyBytes, "the memory test");
  std::memset(buffer->data(), 1, buffer->size_bytes());
  std::atomic<uint64_t> sink{0};
  auto read = [&](Worker& w) {
    const size_t part = kReadBytes / static_cast<size_t>(w.count()) / 512 * 512;
    sink ^= loops.read(buffer->data() + static_cast<size_t>(w.index()) * part, part);
    return static_cast<double>(part);
  };
  f.read_gb_s = best_rate(all, read) / 1e9;
  f.read_one_gb_s = best_rate(one, read) / 1e9;
  f.copy_gb_s = best_rate(all,
                          [&](Worker& w) {
                            const size_t part = kCopyBytes / static_cast<size_t>(w.count());
                            const size_t at = static_cast<size_t>(w.index()) * part;
                            std::memcpy(buffer->data() + kReadBytes + at, buffer->data() + at, part);
                            return static_cast<double>(part);
                          }) /
                1e9;
  constexpr int64_t kRounds = 1000000;
  f.int8_gop_s = best_rate(all, [&](Worker&) { return loops.int8(kRounds); }) / 1e9;
  f.f32_gflop_s = best_rate(all, [&](Worker&) { return loops.f32(kRounds); }) / 1e9;
  f.f32_one_gflop_s = best_rate(one, [&](Worker&) { return loops.f32(kRounds); }) / 1e9;
  return f;
}

}  // namespace fathom
