// The lightning indexer's choice of rows, a token at a time on decoded cache rows.
#include <algorithm>
#include <numeric>

#include "core/quant/dequantize.h"
#include "cpu/reference/reference.h"
#include "cpu/sequence_runs.h"

namespace fathom::cpu::reference {
namespace {

/// What one thread needs for one token, in its own workspace.
struct TokenScratch {
  float* row;     ///< [DI]
  float* scores;  ///< [visible rows]
  int32_t* rows;  ///< [visible rows]
  size_t bytes;

  TokenScratch(const IndexRowsArgs& a, std::byte* base) {
    const int64_t n = deepest_context(a.step) / a.tokens_per_row;
    row = reinterpret_cast<float*>(base);
    scores = row + a.cache.dim(2);
    rows = reinterpret_cast<int32_t*>(scores + n);
    bytes = static_cast<size_t>(a.cache.dim(2) + 2 * n) * sizeof(float);
  }
};

float index_score(const IndexRowsArgs& a, int64_t t, const float* row) {
  const int64_t n = a.q.dim(2);
  float score = 0;
  for (int64_t h = 0; h < a.q.dim(1); ++h) {
    const float* q = a.q.row_as<float>(t) + h * n;
    float dot = 0;
    for (int64_t i = 0; i < n; ++i) dot += q[i] * row[i];
    score += a.head_weights.row_as<float>(t)[h] * std::max(dot, 0.0F);
  }
  return score;
}

}  // namespace

Workspace index_rows_workspace(const IndexRowsArgs& a) { return {0, TokenScratch(a, nullptr).bytes}; }

void index_rows(const IndexRowsArgs& a, OpContext& c) {
  const TokenScratch x(a, c.own);
  const int64_t top_k = a.chosen.dim(1);
  c.worker.share(a.q.dim(0), 1, [&](int64_t t, int64_t) {
    int32_t* chosen = a.chosen.row_as<int32_t>(t);
    const int64_t n_visible = visible_rows(a.step, t, a.tokens_per_row), n_chosen = std::min(n_visible, top_k);
    std::iota(x.rows, x.rows + n_visible, 0);
    if (n_visible > top_k) {
      for (int64_t w = 0; w < n_visible; ++w) {
        dequantize_row(a.cache.dtype, cached_row(a.cache, a.step, a.step.sequence_of.as<int32_t>()[t], w), x.row,
                       a.cache.dim(2));
        x.scores[w] = index_score(a, t, x.row);
      }
      std::nth_element(x.rows, x.rows + top_k, x.rows + n_visible, [&](int32_t v, int32_t w) {
        return x.scores[v] != x.scores[w] ? x.scores[v] > x.scores[w] : v < w;
      });
      std::sort(x.rows, x.rows + top_k);
    }
    std::copy_n(x.rows, n_chosen, chosen);
    std::fill(chosen + n_chosen, chosen + top_k, -1);
  });
}

}  // namespace fathom::cpu::reference
