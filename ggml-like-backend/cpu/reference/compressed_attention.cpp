// V4's attention: rows made of several tokens, and one softmax over them and the window.
#include "core/quant/dequantize.h"
#include "cpu/compressed_rows.h"
#include "cpu/reference/reference.h"

namespace fathom::cpu::reference {

Workspace compress_rows_workspace(const CompressRowsArgs& a) {
  return {0, static_cast<size_t>(a.row_dim()) * (sizeof(float) + sizeof(double))};
}

void compress_rows(const CompressRowsArgs& a, OpContext& c) {
  const int64_t n = a.row_dim(), channels = a.kv.dim(1);
  c.worker.share(a.kv.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) store_pending(a, t);
  });
  c.worker.barrier();
  c.worker.share(a.kv.dim(0), 1, [&](int64_t t, int64_t) {
    const int64_t last = a.step.positions.as<int32_t>()[t], sequence = a.step.sequence_of.as<int32_t>()[t];
    if ((last + 1) % a.ratio != 0) return;
    const int64_t first = last + 1 - a.ratio;
    // Calls fn(kv, gate of the channel for this row) for every token that the row is made of.
    const auto each_token = [&](int64_t channel, auto&& fn) {
      for (int64_t p = a.overlaps() ? std::max<int64_t>(0, first - a.ratio) : first; p <= last; ++p) {
        const auto* pending = reinterpret_cast<const float*>(cached_row(a.pending, a.step, sequence, p));
        const int64_t i = a.overlaps() && p >= first ? n + channel : channel;
        fn(static_cast<double>(pending[i]), static_cast<double>(pending[channels + i]));
      }
    };
    double* sums = reinterpret_cast<double*>(c.own);
    double squares = 0;
    for (int64_t j = 0; j < n; ++j) {
      double largest = -HUGE_VAL, total = 0, sum = 0;
      each_token(j, [&](double, double gate) { largest = std::max(largest, gate); });
      each_token(j, [&](double kv, double gate) {
        const double weight = std::exp(gate - largest);
        total += weight;
        sum += weight * kv;
      });
      sums[j] = sum / total;
      squares += sums[j] * sums[j];
    }
    float* row = reinterpret_cast<float*>(sums + n);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(a.eps));
    for (int64_t j = 0; j < n; ++j)
      row[j] = static_cast<float>(sums[j] * scale * static_cast<double>(a.norm_weight.as<float>()[j]));
    rotate_row(row, n, a.frequencies.as<float>(), a.frequencies.dim(0), first);
    store_row(a.cache.dtype, row, compressed_row(a.cache, a.step, a.pending.dim(1), sequence, last / a.ratio, a.ratio),
              n);
  });
}

Workspace compressed_attention_workspace(const CompressedAttentionArgs& a, int) {
  const auto n = static_cast<size_t>(a.q.dim(2));
  return {0, (static_cast<size_t>(SeenRows::most(a)) + n) * sizeof(double) + n * sizeof(float)};
}

void compressed_attention(const CompressedAttentionArgs& a, OpContext& c) {
  const int64_t n_heads = a.q.dim(1), n = a.q.dim(2);
  double* weights = reinterpret_cast<double*>(c.own);  // [rows]
  double* sum = weights + SeenRows::most(a);           // [N]
  float* row = reinterpret_cast<float*>(sum + n);      // [N]
  c.worker.share(a.q.dim(0) * n_heads, 1, [&](int64_t job, int64_t) {
    const int64_t t = job / n_heads, h = job % n_heads;
    const SeenRows rows(a, t);
    const float* q = a.q.row_as<float>(t) + h * n;
    const double sink = static_cast<double>(a.sinks.as<float>()[h]);
    double largest = sink;
    for (int64_t s = 0; s < rows.size(); ++s) {
      dequantize_row(s < rows.n_window() ? a.window.dtype : a.compressed.dtype, rows[s], row, n);
      double score = 0;
      for (int64_t i = 0; i < n; ++i) score += static_cast<double>(q[i]) * static_cast<double>(row[i]);
      weights[s] = score * static_cast<double>(a.scale);
      largest = std::max(largest, weights[s]);
    }
    double total = std::exp(sink - largest);
    std::fill_n(sum, n, 0.0);
    for (int64_t s = 0; s < rows.size(); ++s) {
      const double weight = std::exp(weights[s] - largest);
      total += weight;
      dequantize_row(s < rows.n_window() ? a.window.dtype : a.compressed.dtype, rows[s], row, n);
      for (int64_t i = 0; i < n; ++i) sum[i] += weight * static_cast<double>(row[i]);
    }
    for (int64_t i = 0; i < n; ++i) a.out.row_as<float>(t)[h * n + i] = static_cast<float>(sum[i] / total);
  });
}

}  // namespace fathom::cpu::reference
