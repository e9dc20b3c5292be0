// Speed of attention, a layer at a time, at the shapes of V2-Lite, V3 and V1: milliseconds, and share of the
// multiply-adds that the same operands reach in a loop without memory.
//
//   bench_attention [--isa NAME] [--threads N] [--cache TYPE] [--weights TYPE] [--reps N]
//                   [--only lite|v3|v1] [--form auto|absorbed|expanded] [--apart] [--tokens N --depth N] [--top-k N]
//
// Times are processor time of the busiest thread, the best of the repetitions: on a quiet machine the elapsed time, on
// a busy one what it would have been. FLOP are those of the form that runs, projections included. With --top-k tokens
// attend to so many rows, anywhere in the cache, and the indexer's choice of them (64 heads of 128) is timed beside it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "cpu/attention_problem.h"
#include "cpu/fast/attention_isa.h"
#include "cpu/fast/fast.h"

using namespace fathom;

namespace {

struct Model {
  const char* name;
  int64_t heads, nope, rope, value, latent;  ///< latent 0: plain multi-head
};
constexpr Model kModels[] = {
    {"lite", 16, 128, 64, 128, 512}, {"v3", 128, 128, 64, 128, 512}, {"v1", 16, 128, 0, 128, 0}};

struct Options {
  std::string isa = cpu::matmul_isa_names().front(), only = "lite", form = "auto";
  int threads = 1, reps = 5;
  int64_t tokens = 0, depth = 0, top_k = 0;
  bool apart = false;
  DType cache = DType::kBF16, weights = DType::kQ8_0;
};

double thread_cpu_s() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Best processor seconds of an operation's busiest thread; short ones many times in one run, as the layers of a pass
/// are.
template <typename Args>
double time_op(Args args, int n_layers, void (*op)(const Args&, cpu::OpContext&), cpu::Workspace w,
               const cpu::MatmulKernels* kernels, const Options& o) {
  w.shared_bytes = (w.shared_bytes + 127) / 64 * 64, w.per_thread_bytes = (w.per_thread_bytes + 127) / 64 * 64;
  const auto buffer = allocate_heap(w.shared_bytes + w.per_thread_bytes * static_cast<size_t>(o.threads), "workspace");
  ThreadPool pool(o.threads);
  std::vector<double> seconds(static_cast<size_t>(o.threads));
  double best = HUGE_VAL;
  for (int rep = 0; rep <= o.reps; ++rep) {  // the first touches the workspace
    pool.run([&](Worker& worker) {
      const auto i = static_cast<size_t>(worker.index());
      cpu::OpContext context{.worker = worker,
                             .matmul = kernels,
                             .elements = nullptr,
                             .shared = buffer->data(),
                             .own = buffer->data() + w.shared_bytes + w.per_thread_bytes * i};
      const double start = thread_cpu_s();
      for (int layer = 0; layer < n_layers; ++layer) {
        op(args, context);
        worker.barrier();
      }
      seconds[i] = (thread_cpu_s() - start) / n_layers;
    });
    if (rep > 0) best = std::min(best, *std::max_element(seconds.begin(), seconds.end()));
  }
  return best;
}

/// Multiply-adds a second of one thread with everything in the first-level cache: the kernels' own score tile.
double peak_flops(const cpu::AttentionKernels& k) {
  constexpr int64_t kSteps = 128, kRows = 48, kPanels = 2;
  const std::vector<uint32_t> a(kRows * kSteps), b(static_cast<size_t>(kSteps * k.lanes));
  std::vector<float> c(static_cast<size_t>(kRows * kPanels * k.lanes));
  double best = HUGE_VAL;
  for (int rep = 0; rep < 20; ++rep) {
    const double start = thread_cpu_s();
    for (int i = 0; i < 200; ++i) {
      k.multiply({reinterpret_cast<const std::byte*>(a.data()), kSteps * 4, b.data(), 0, k.lanes, c.data(),
                  kPanels * k.lanes, k.lanes, kRows, kPanels, kSteps, false, nullptr, 0});
    }
    best = std::min(best, thread_cpu_s() - start);
  }
  return 2.0 * 200 * kRows * kPanels * k.lanes * kSteps * k.pack / best;
}

void measure_choice(testing::PagedStep& paged, const StepTensors& step, int64_t n_pages, int64_t tokens, int64_t depth,
                    LatentAttentionArgs a, const Options& o, const cpu::MatmulKernels* kernels) {
  constexpr int64_t kIndexHeads = 64, kIndexDim = 128;
  const Tensor chosen = paged.tensor(DType::kI32, {tokens, o.top_k});
  const IndexRowsArgs index{paged.gaussian(DType::kF32, {tokens, kIndexHeads, kIndexDim}, 1.0F),
                            paged.gaussian(DType::kF32, {tokens, kIndexHeads}, 1.0F),
                            paged.gaussian(o.cache, {n_pages, 64, kIndexDim}, 1.0F),
                            step,
                            chosen,
                            1};
  const int n_layers = tokens <= 8 ? 8 : 1;
  const double choice =
      time_op(index, n_layers, cpu::fast::index_rows, cpu::fast::index_rows_workspace(index, *kernels), kernels, o);
  const double rows = static_cast<double>(tokens) * static_cast<double>(depth + (tokens + 1) / 2);
  a.chosen = chosen;
  const double attention = time_op(a, n_layers, cpu::fast::latent_attention,
                                   cpu::fast::latent_attention_workspace(a, *kernels, o.threads), kernels, o);
  a.chosen = {};
  a.form = AttentionForm::kAbsorbed;
  const double dense = time_op(a, n_layers, cpu::fast::latent_attention,
                               cpu::fast::latent_attention_workspace(a, *kernels, o.threads), kernels, o);
  std::printf(
      "%6lld tokens at %6lld, top %lld: choice %9.3f ms (%5.1f GFLOP/s), attention %9.3f ms; over all rows %9.3f ms\n",
      static_cast<long long>(tokens), static_cast<long long>(depth), static_cast<long long>(o.top_k), choice * 1e3,
      rows * 2 * kIndexHeads * kIndexDim / choice * 1e-9, attention * 1e3, dense * 1e3);
  std::fflush(stdout);
}

void measure(const Model& m, int64_t tokens, int64_t depth, const Options& o) {
  const cpu::MatmulKernels* kernels = cpu::matmul_kernels(o.isa);
  const bool latent = m.latent > 0;
  const int64_t row = latent ? m.latent + m.rope : 2 * m.heads * m.nope;
  testing::PagedStep paged({{0, 1}}, 64, row, o.cache, 1);
  // Rows by repeating some random ones: making millions of numbers would take longer than the measurement.
  const int64_t n_rows = depth + tokens, n_pages = (n_rows + 63) / 64;
  const Tensor cache = paged.tensor(o.cache, {n_pages, 64, row}), sample = paged.gaussian(o.cache, {256, row}, 1.0F);
  const size_t bytes = row_bytes(o.cache, row);
  for (int64_t i = 0; i < n_pages * 64; ++i)
    std::memcpy(cache.data + static_cast<size_t>(i) * bytes, sample.data + static_cast<size_t>(i * 77 % 256) * bytes,
                bytes);
  std::vector<int32_t> positions(static_cast<size_t>(tokens)), sequence_of(static_cast<size_t>(tokens), 0),
      pages(static_cast<size_t>(n_pages));
  for (int64_t i = 0; i < tokens; ++i) positions[static_cast<size_t>(i)] = static_cast<int32_t>(depth + i);
  for (int64_t i = 0; i < n_pages; ++i) pages[static_cast<size_t>(i)] = static_cast<int32_t>(n_pages - 1 - i);
  const StepTensors step{Tensor(DType::kI32, {tokens}, positions.data()), Tensor(),
                         Tensor(DType::kI32, {tokens}, sequence_of.data()),
                         Tensor(DType::kI32, {1, n_pages}, pages.data())};
  const Tensor q = paged.gaussian(DType::kF32, {tokens, m.heads, m.nope + m.rope}, 1.0F);
  const Tensor out = paged.tensor(DType::kF32, {tokens, m.heads * m.value});
  const double pairs =
      static_cast<double>(m.heads) * (static_cast<double>(tokens) * static_cast<double>(depth) +
                                      0.5 * static_cast<double>(tokens) * static_cast<double>(tokens + 1));
  double seconds = 0, flops = 0;
  if (latent) {
    LatentAttentionArgs a{q, {}, {}, {}, cache, step, out, 0.1F, AttentionForm::kAuto};
    const float deviation = 1.0F / std::sqrt(static_cast<float>(m.latent));
    auto make = [&](Shape shape) {
      if (o.weights == DType::kQ4_K) return paged.random_blocks(o.weights, shape, {0, 2}, deviation / 150);
      return paged.gaussian(o.weights, shape, deviation);
    };
    if (o.apart) {
      a.k_b = make({m.heads, m.latent, m.nope}), a.v_b = make({m.heads, m.value, m.latent});
    } else {
      a.kv_b = make({m.heads * (m.nope + m.value), m.latent});
    }
    const bool expanded = o.form == "expanded" || (o.form == "auto" && tokens >= 171);
    a.form = expanded ? AttentionForm::kExpanded : AttentionForm::kAbsorbed;
    if (o.top_k > 0 && depth >= o.top_k) {
      measure_choice(paged, step, n_pages, tokens, depth, a, o, kernels);
      return;
    }
    const double per_row = 2.0 * static_cast<double>(m.heads * m.latent * (m.nope + m.value));
    flops = expanded
                ? pairs * 2.0 * static_cast<double>(m.nope + m.rope + m.value) + per_row * static_cast<double>(n_rows)
                : pairs * 2.0 * static_cast<double>(2 * m.latent + m.rope) + per_row * static_cast<double>(tokens);
    seconds = time_op(a, tokens <= 8 ? 27 : 1, cpu::fast::latent_attention,
                      cpu::fast::latent_attention_workspace(a, *kernels, o.threads), kernels, o);
  } else {
    const MultiHeadAttentionArgs a{q, cache, step, out, 0.1F};
    flops = pairs * 4.0 * static_cast<double>(m.nope);
    seconds = time_op(a, tokens <= 8 ? 27 : 1, cpu::fast::multi_head_attention,
                      cpu::fast::multi_head_attention_workspace(a, *kernels, o.threads), kernels, o);
  }
  const double peak = peak_flops(cpu::fast::attention_kernels(o.isa, o.cache)) * o.threads;
  std::printf("%-5s %6lld tokens at %6lld  %9.3f ms  %7.1f GFLOP/s  %3.0f %% of %.0f  cache %5.2f GB/s\n", m.name,
              static_cast<long long>(tokens), static_cast<long long>(depth), seconds * 1e3, flops / seconds * 1e-9,
              100 * flops / seconds / peak, peak * 1e-9,
              static_cast<double>(bytes) * static_cast<double>(n_rows) / seconds * 1e-9);
  std::fflush(stdout);
}

DType type_named(const char* name) {
  const std::optional<DType> type = dtype_from_name(name);
  if (!type) std::fprintf(stderr, "no such type: %s\n", name), std::exit(2);
  return *type;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--apart") {
      o.apart = true;
      continue;
    }
    if (i + 1 == argc) return std::fprintf(stderr, "%s needs a value\n", argv[i]), 2;
    const char* value = argv[++i];
    if (flag == "--isa")
      o.isa = value;
    else if (flag == "--threads")
      o.threads = std::atoi(value);
    else if (flag == "--reps")
      o.reps = std::atoi(value);
    else if (flag == "--cache")
      o.cache = type_named(value);
    else if (flag == "--weights")
      o.weights = type_named(value);
    else if (flag == "--only")
      o.only = value;
    else if (flag == "--form")
      o.form = value;
    else if (flag == "--tokens")
      o.tokens = std::atoll(value);
    else if (flag == "--depth")
      o.depth = std::atoll(value);
    else if (flag == "--top-k")
      o.top_k = std::atoll(value);
    else
      return std::fprintf(stderr, "no such flag: %s\n", argv[i - 1]), 2;
  }
  if (o.threads < 1 || o.reps < 1 || o.tokens < 0 || o.depth < 0 || o.top_k < 0 ||
      cpu::matmul_kernels(o.isa) == nullptr) {
    return std::fprintf(stderr, "value out of range, or no such instruction set here\n"), 2;
  }
  std::printf("isa %s, %d threads, cache %s, weights %s\n", o.isa.c_str(), o.threads,
              std::string(dtype_name(o.cache)).c_str(), std::string(dtype_name(o.weights)).c_str());
  for (const Model& m : kModels) {
    if (o.only != m.name) continue;
    if (o.tokens > 0) {
      measure(m, o.tokens, o.depth, o);
      continue;
    }
    for (const int64_t depth : {0, 4096, 16384, 32768}) measure(m, 1, depth, o);
    measure(m, 8, 4096, o);
    for (const int64_t tokens : {512, 2048}) {
      for (const int64_t depth : {0, 4096}) measure(m, tokens, depth, o);
    }
  }
  return 0;
}
