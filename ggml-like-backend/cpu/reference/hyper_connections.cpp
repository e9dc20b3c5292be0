// Hyper-connections: collapsing residual streams to a sublayer's input and spreading its output over them.

#include "cpu/reference/reference.h"
#include "cpu/stream_mixing.h"

namespace fathom::cpu::reference {

void collapse_streams(const CollapseStreamsArgs& a, OpContext& c) {
  const int64_t m = a.n_streams(), d = a.out.dim(1);
  c.worker.share(a.out.dim(0), 1, [&](int64_t t, int64_t) {
    const float* streams = a.streams.row_as<float>(t);
    double squares = 0;
    for (int64_t i = 0; i < m * d; ++i) squares += static_cast<double>(streams[i]) * static_cast<double>(streams[i]);
    double pre[kMostStreams];
    stream_coefficients(a, t, squares, pre);
    float* out = a.out.row_as<float>(t);
    for (int64_t i = 0; i < d; ++i) {
      double sum = 0;
      for (int64_t s = 0; s < m; ++s) sum += pre[s] * static_cast<double>(streams[s * d + i]);
      out[i] = static_cast<float>(sum);
    }
  });
}

void expand_streams(const ExpandStreamsArgs& a, OpContext& c) {
  const int64_t m = a.n_streams(), d = a.y.dim(1);
  c.worker.share(a.out.dim(0), 1, [&](int64_t t, int64_t) {
    const float* streams = a.streams.row_as<float>(t);
    const float* y = a.y.row_as<float>(t);
    const float* post = a.mixing.row_as<float>(t);
    const float* matrix = post + m;
    float* out = a.out.row_as<float>(t);
    for (int64_t to = 0; to < m; ++to) {
      for (int64_t i = 0; i < d; ++i) {
        double sum = static_cast<double>(post[to]) * static_cast<double>(y[i]);
        for (int64_t from = 0; from < m; ++from)
          sum += static_cast<double>(matrix[from * m + to]) * static_cast<double>(streams[from * d + i]);
        out[to * d + i] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace fathom::cpu::reference
