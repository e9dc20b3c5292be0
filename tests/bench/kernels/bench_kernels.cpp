// Speed of the matrix kernels beside what the machine can do, for every weight type.
//
//   bench_kernels [--isa NAME] [--types a,b,...] [--mib N] [--reps N] [--columns 1,2,4,8] [--prefill N] [--k N]
//   [--task-rows N]
//
// Decode: weights of N MiB (beyond any cache), read once per repetition; GB/s of weights and share of the read
// bandwidth taken in the same repetition. Prefill: a matrix of 2048 rows times N columns; GOP/s (a multiply-add is 2)
// and share of the integer peak. Medians over the repetitions. Run it on a quiet machine, and compare shares rather
// than speeds.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/machine_loops.h"
#include "machine_peaks.h"

using namespace fathom;
using cpu::MatmulKernels;

namespace {

double thread_cpu_s() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// Seconds that fn(thread) takes on n threads at once: processor time of the slowest, which is the elapsed time on a
/// quiet machine and does not count what other programs take from it.
double time_threads(int n, const std::function<void(int)>& fn) {
  std::barrier gate(n);
  std::vector<double> seconds(static_cast<size_t>(n));
  std::vector<std::thread> threads;
  for (int t = 0; t < n; ++t) {
    threads.emplace_back([&, t] {
      gate.arrive_and_wait();
      const double start = thread_cpu_s();
      fn(t);
      seconds[static_cast<size_t>(t)] = thread_cpu_s() - start;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return *std::max_element(seconds.begin(), seconds.end());
}

struct Options {
  std::string isa = cpu::matmul_isa_names().empty() ? "" : cpu::matmul_isa_names().front();
  std::string types =
      "q4_k,q6_k,q8_0,q5_0,q5_k,q4_0,iq4_xs,iq4_nl,mxfp4,q3_k,q2_k,q5_1,q4_1,iq2_xxs,iq2_xs,iq2_s,iq3_xxs,iq3_s,iq1_s,"
      "iq1_m,f32,f16,bf16";
  std::string columns = "1,2,4,8";
  int64_t mib = 512, k = 2048;
  int64_t task_rows = 64;
  int reps = 5, prefill = 512;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

/// Columns of quantized activations and room for their results.
struct Columns {
  std::vector<std::vector<std::byte>> act;
  std::vector<std::vector<float>> y;
  std::vector<const void*> act_rows;
  std::vector<float*> y_rows;

  static std::byte* aligned(std::byte* p) { return p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64; }

  Columns(const MatmulKernels& kernels, DType type, int n, int64_t k, int64_t rows) {
    std::vector<float> x(static_cast<size_t>(k));
    for (int c = 0; c < n; ++c) {
      for (float& v : x) v = static_cast<float>(std::rand() % 2001 - 1000) * 1e-3f;
      act.emplace_back(kernels.act_row_bytes(type, k) + 64);
      y.emplace_back(static_cast<size_t>(rows));
      act_rows.push_back(aligned(act.back().data()));
      kernels.quantize_act(type, x.data(), aligned(act.back().data()), k);
    }
    for (int c = 0; c < n; ++c) {
      y_rows.push_back(y[static_cast<size_t>(c)].data());
    }
  }
};

/// Multiplies rows of the matrix at w on n_threads threads, an even share each, in calls of task_rows rows, each of
/// which announces the next.
double time_matmul(const MatmulKernels& kernels, DType type, const std::byte* w, int64_t rows, int64_t k,
                   int64_t task_rows, Columns& columns, int n_threads) {
  return time_threads(n_threads, [&](int t) {
    const int64_t first = rows / 32 * t / n_threads * 32, end = rows / 32 * (t + 1) / n_threads * 32;
    const auto stride = static_cast<int64_t>(row_bytes(type, k));
    for (int64_t row = first; row < end; row += task_rows) {
      kernels.matmul(type, {.w = w,
                            .row_stride_bytes = stride,
                            .row_begin = row,
                            .row_end = std::min(end, row + task_rows),
                            .k = k,
                            .act_rows = columns.act_rows.data(),
                            .n_cols = static_cast<int>(columns.act.size()),
                            .y_rows = columns.y_rows.data(),
                            .next_w = row + task_rows < end ? w + (row + task_rows) * stride : nullptr});
    }
  });
}

/// Random exponents would make a part of the scales of MXFP4 subnormal, which the processor is slow with.
void tame_scales(DType type, std::vector<std::byte>& weights) {
  if (type != DType::kMXFP4) return;
  for (size_t i = 0; i < weights.size(); i += 17) weights[i] = std::byte{0x78};
}

double time_read(const std::byte* w, int64_t bytes, int n_threads) {
  return time_threads(n_threads, [&](int t) {
    const int64_t share = bytes / n_threads / 256 * 256;
    volatile uint64_t sum = bench::read_all(w + t * share, static_cast<size_t>(share));
    (void)sum;
  });
}

double peak_gop_s(const std::string& isa, int n_threads) {
  double multiply_adds = 0;
  const double seconds = time_threads(n_threads, [&](int t) {
    const double done = isa == "avx512"     ? bench::run_dpbusd(4'000'000)
                        : isa == "avx_vnni" ? cpu::avx_vnni::int8_loop(8'000'000) / 2
                                            : bench::run_maddubs(4'000'000);
    if (t == 0) multiply_adds = done * n_threads;
  });
  return 2e-9 * multiply_adds / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--isa")
      o.isa = value;
    else if (flag == "--types")
      o.types = value;
    else if (flag == "--mib")
      o.mib = std::stoll(value);
    else if (flag == "--reps")
      o.reps = std::stoi(value);
    else if (flag == "--columns")
      o.columns = value;
    else if (flag == "--prefill")
      o.prefill = std::stoi(value);
    else if (flag == "--task-rows")
      o.task_rows = std::stoll(value);
    else if (flag == "--k")
      o.k = std::stoll(value);
    else
      return std::fprintf(stderr, "unknown flag %s\n", argv[i]), 2;
  }
  const MatmulKernels* kernels = cpu::matmul_kernels(o.isa);
  if (kernels == nullptr) return std::fprintf(stderr, "no kernels called '%s' here\n", o.isa.c_str()), 2;

  // Every half-precision scale read from these bytes is finite and positive.
  const int64_t bytes = std::max<int64_t>(o.mib << 20, 2048 * 4 * o.k);  // at least the matrix of prefill
  std::vector<std::byte> weights(static_cast<size_t>(bytes));
  uint64_t state = 1;
  for (size_t i = 0; i < weights.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t word = (state ^ state >> 29) & 0x3f3f3f3f3f3f3f3fu;
    std::memcpy(&weights[i], &word, 8);
  }

  std::printf("isa %s, k %ld, %ld MiB of weights, medians of %d\n", o.isa.c_str(), static_cast<long>(o.k),
              static_cast<long>(o.mib), o.reps);
  if (o.mib > 0 && !o.columns.empty()) {
    std::printf("%-8s", "decode");
    for (const std::string& n : split(o.columns)) {
      for (const int threads : {1, 2}) std::printf("   %2s col %d thr ", n.c_str(), threads);
    }
    std::printf("  read 1 thr, 2 thr\n");
    for (const std::string& name : split(o.types)) {
      const DType type = *dtype_from_name(name);
      tame_scales(type, weights);
      const int64_t rows = bytes / static_cast<int64_t>(row_bytes(type, o.k)) / 32 * 32;
      const double gb = 1e-9 * static_cast<double>(rows) * static_cast<double>(row_bytes(type, o.k));
      std::vector<double> reads[3];
      std::printf("%-8s", name.c_str());
      for (const std::string& n : split(o.columns)) {
        Columns columns(*kernels, type, std::stoi(n), o.k, rows);
        for (const int threads : {1, 2}) {
          std::vector<double> speed, share;
          for (int rep = 0; rep < o.reps; ++rep) {
            const double read = 1e-9 * static_cast<double>(bytes) / time_read(weights.data(), bytes, threads);
            speed.push_back(gb / time_matmul(*kernels, type, weights.data(), rows, o.k, o.task_rows, columns, threads));
            share.push_back(speed.back() / read);
            reads[threads].push_back(read);
          }
          std::printf("  %5.1f (%3.0f %%)", median(speed), 100 * median(share));
          std::fflush(stdout);
        }
      }
      std::printf("  %5.1f %5.1f GB/s\n", median(reads[1]), median(reads[2]));
    }
  }
  if (o.prefill > 0) {
    std::printf("prefill, %d columns                 1 thr             2 thr      peak 1 thr, 2 thr\n", o.prefill);
    for (const std::string& name : split(o.types)) {
      const DType type = *dtype_from_name(name);
      tame_scales(type, weights);
      const int64_t rows = 2048;
      Columns columns(*kernels, type, o.prefill, o.k, rows);
      std::vector<double> peaks[3];
      std::printf("%-24s", name.c_str());
      for (const int threads : {1, 2}) {
        std::vector<double> speed, share;
        for (int rep = 0; rep < o.reps; ++rep) {
          const double peak = peak_gop_s(o.isa, threads);
          const double seconds = time_matmul(*kernels, type, weights.data(), rows, o.k, o.task_rows, columns, threads);
          speed.push_back(2e-9 * static_cast<double>(rows * o.k) * o.prefill / seconds);
          share.push_back(speed.back() / peak);
          peaks[threads].push_back(peak);
        }
        std::printf("   %7.1f (%3.0f %%)", median(speed), 100 * median(share));
      }
      std::printf("   %7.1f %7.1f GOP/s\n", median(peaks[1]), median(peaks[2]));
      std::fflush(stdout);
    }
  }
}
