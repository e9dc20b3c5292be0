#include "engine/cache_arrays.h"

#include <algorithm>

namespace fathom {
namespace {

/// Calls layer(index) or recent(index) for every kind of rows in order, and collects what they return.
template <typename Layer, typename Recent>
std::vector<Tensor> in_order(const deepseek::Config& config, Layer&& layer, Recent&& recent) {
  std::vector<Tensor> arrays;
  int n_layers = 0, n_recent = 0;
  for (const deepseek::CacheRows& rows : config.cache_rows())
    arrays.push_back(rows.is_recent ? recent(n_recent++) : layer(n_layers++));
  return arrays;
}

}  // namespace

CacheLayout cache_layout(const deepseek::Config& config, DType dtype) {
  CacheLayout layout;
  layout.dtype = dtype;
  layout.recent_tokens = config.recent_tokens();
  for (const deepseek::CacheRows& rows : config.cache_rows()) {
    if (rows.is_recent) {
      layout.recent.push_back({rows.elements, rows.is_exact ? DType::kF32 : dtype});
      continue;
    }
    layout.row_elements.push_back(rows.elements);
    layout.tokens_per_row.push_back(rows.tokens_per_row);
    ++layout.n_layers;
  }
  const std::vector<int64_t>& n = layout.tokens_per_row;
  if (std::all_of(n.begin(), n.end(), [](int64_t tokens) { return tokens == 1; })) layout.tokens_per_row.clear();
  return layout;
}

std::vector<Tensor> cache_arrays(const deepseek::Config& config, const PagePool& pool) {
  return in_order(
      config, [&](int i) { return pool.layer(i); }, [&](int i) { return pool.recent(i); });
}

std::vector<Tensor> cache_arrays(const deepseek::Config& config, const CacheLayout& layout, int64_t n_pages) {
  return in_order(
      config,
      [&](int i) {
        return Tensor(layout.dtype,
                      {n_pages, layout.n_rows(i, kPageTokens), layout.row_elements[static_cast<size_t>(i)]}, nullptr);
      },
      [&](int i) {
        const TokenRows& rows = layout.recent[static_cast<size_t>(i)];
        return Tensor(rows.dtype, {n_pages, kPageTokens, rows.elements}, nullptr);
      });
}

}  // namespace fathom
