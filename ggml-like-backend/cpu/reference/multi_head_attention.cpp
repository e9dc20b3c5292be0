// Plain causal attention with a key and a value head for every query head.
#include <cmath>

#include "core/quant/dequantize.h"
#include "cpu/attention.h"
#include "cpu/sequence_runs.h"

namespace fathom::cpu::reference {

Workspace multi_head_attention_workspace(const MultiHeadAttentionArgs& a, int) {
  return {0, static_cast<size_t>(deepest_context(a.step) + a.cache.dim(2) + a.q.dim(2)) * sizeof(double)};
}

void multi_head_attention(const MultiHeadAttentionArgs& a, OpContext& c) {
  const int64_t n_heads = a.q.dim(1), n = a.q.dim(2);
  double* sum = reinterpret_cast<double*>(c.own);                            // [N]
  double* weights = sum + n;                                                 // [S]
  float* row = reinterpret_cast<float*>(weights + deepest_context(a.step));  // [2 * H * N]
  c.worker.share(a.q.dim(0) * n_heads, 1, [&](int64_t job, int64_t) {
    const int64_t t = job / n_heads, h = job % n_heads;
    const int64_t sequence = a.step.sequence_of.as<int32_t>()[t], n_visible = a.step.positions.as<int32_t>()[t] + 1;
    const float* q = a.q.row_as<float>(t) + h * n;
    double largest = -HUGE_VAL;
    for (int64_t s = 0; s < n_visible; ++s) {
      dequantize_row(a.cache.dtype, cached_row(a.cache, a.step, sequence, s), row, 2 * n_heads * n);
      double score = 0;
      for (int64_t i = 0; i < n; ++i) score += static_cast<double>(q[i]) * static_cast<double>(row[h * n + i]);
      weights[s] = score * static_cast<double>(a.scale);
      largest = std::max(largest, weights[s]);
    }
    double total = 0;
    std::fill_n(sum, n, 0.0);
    for (int64_t s = 0; s < n_visible; ++s) {
      const double weight = std::exp(weights[s] - largest);
      total += weight;
      dequantize_row(a.cache.dtype, cached_row(a.cache, a.step, sequence, s), row, 2 * n_heads * n);
      for (int64_t i = 0; i < n; ++i) sum[i] += weight * static_cast<double>(row[(n_heads + h) * n + i]);
    }
    for (int64_t i = 0; i < n; ++i) a.out.row_as<float>(t)[h * n + i] = static_cast<float>(sum[i] / total);
  });
}

}  // namespace fathom::cpu::reference
