// Hyper-connections over the element kernels: coefficients token by token, then columns of all tokens.
#include "cpu/fast/fast.h"
#include "cpu/fast/matmul_tasks.h"
#include "cpu/stream_mixing.h"

namespace fathom::cpu::fast {
namespace {

constexpr int64_t kColumns = 1024;

/// Calls fn(token, first column, columns) for pieces of all rows.
template <typename Fn> void share_columns(Worker& worker, int64_t n_tokens, int64_t width, Fn&& fn) {
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  worker.share(n_tokens * pieces, 1, [&](int64_t job, int64_t) {
    const int64_t first = job % pieces * kColumns;
    fn(job / pieces, first, std::min(kColumns, width - first));
  });
}

}  // namespace

Workspace collapse_streams_workspace(const CollapseStreamsArgs& a) {
  return {static_cast<size_t>(a.out.dim(0) * kMostStreams) * sizeof(float), 0};
}

void collapse_streams(const CollapseStreamsArgs& a, OpContext& c) {
  const int64_t m = a.n_streams(), d = a.out.dim(1);
  float* pre = reinterpret_cast<float*>(c.shared);  // [T][kMostStreams]
  c.worker.share(a.out.dim(0), 1, [&](int64_t t, int64_t) {
    double exact[kMostStreams];
    stream_coefficients(a, t, c.elements->sum_squares(a.streams.row_as<float>(t), m * d), exact);
    std::copy_n(exact, m, pre + t * kMostStreams);
  });
  c.worker.barrier();
  share_columns(c.worker, a.out.dim(0), d, [&](int64_t t, int64_t first, int64_t n) {
    const float* rows[kMostStreams];
    for (int64_t s = 0; s < m; ++s) rows[s] = a.streams.row_as<float>(t) + s * d + first;
    c.elements->weigh_rows(rows, pre + t * kMostStreams, static_cast<int>(m), a.out.row_as<float>(t) + first, n);
  });
}

void expand_streams(const ExpandStreamsArgs& a, OpContext& c) {
  const int64_t m = a.n_streams(), d = a.y.dim(1);
  share_columns(c.worker, a.out.dim(0), d, [&](int64_t t, int64_t first, int64_t n) {
    const float* mixing = a.mixing.row_as<float>(t);
    const float* rows[kMostStreams + 1] = {a.y.row_as<float>(t) + first};
    float weights[kMostStreams + 1];
    for (int64_t from = 0; from < m; ++from) rows[1 + from] = a.streams.row_as<float>(t) + from * d + first;
    for (int64_t to = 0; to < m; ++to) {
      weights[0] = mixing[to];
      for (int64_t from = 0; from < m; ++from) weights[1 + from] = mixing[m + from * m + to];
      c.elements->weigh_rows(rows, weights, static_cast<int>(m) + 1, a.out.row_as<float>(t) + to * d + first, n);
    }
  });
}

}  // namespace fathom::cpu::fast
