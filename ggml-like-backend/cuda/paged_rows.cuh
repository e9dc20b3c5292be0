// Which cached rows a token sees, and where they are.
#pragma once

#include <climits>

#include "core/node.h"
#include "cuda/element.cuh"

namespace fathom::cuda {

/// The rows of a cache of pages.
struct CachePages {
  Bytes data = nullptr;
  int64_t page_bytes = 0, row_bytes = 0;
  int page_rows = 1;

  CachePages() = default;
  explicit CachePages(const Tensor& cache)
      : data(cache.as<const unsigned char>()),
        page_bytes(cache.strides_bytes[0]),
        row_bytes(cache.strides_bytes[1]),
        page_rows(static_cast<int>(cache.dim(1))) {}
};

/// Row i of a sequence whose row of the page table is `pages`.
FATHOM_DEVICE Bytes cached_row(const CachePages& rows, const int* pages, int i) {
  return rows.data + pages[i / rows.page_rows] * rows.page_bytes +
         static_cast<int64_t>(i % rows.page_rows) * rows.row_bytes;
}

/// Where each token of a step stands.
struct StepRows {
  const int* page_table = nullptr;
  const int* positions = nullptr;
  const int* sequence_of = nullptr;
  int table_width = 0;

  StepRows() = default;
  explicit StepRows(const StepTensors& step)
      : page_table(step.page_table.as<const int>()),
        positions(step.positions.as<const int>()),
        sequence_of(step.sequence_of.as<const int>()),
        table_width(static_cast<int>(step.page_table.dim(1))) {}
};

FATHOM_DEVICE const int* pages_of(const StepRows& step, int64_t t) {
  return step.page_table + static_cast<int64_t>(step.sequence_of[t]) * step.table_width;
}

/// How many rows a token sees: of the last window_tokens tokens one each, then rows that stand for `ratio` tokens each,
/// those whose tokens are all there, `most` of them at most.
struct SeenCounts {
  int window_tokens = 0;
  int ratio = 1;  ///< INT_MAX: no such rows
  int most = INT_MAX;
};

constexpr int window_rows(const SeenCounts& c, int position) {
  return position + 1 < c.window_tokens ? position + 1 : c.window_tokens;
}
constexpr int rows_seen(const SeenCounts& c, int position) {
  const int n = (position + 1) / c.ratio;
  return window_rows(c, position) + (n < c.most ? n : c.most);
}
/// The most that any token of sequences of so many pages sees.
constexpr int64_t most_rows_seen(const SeenCounts& c, int64_t n_tokens) {
  const int64_t n = n_tokens / c.ratio, window = c.window_tokens;
  return (n_tokens < window ? n_tokens : window) + (n < c.most ? n : c.most);
}

/// The rows that the tokens of a step see, in the order in which they are summed: the window's, oldest first, then the
/// others, rising. Without a window and a token a row: all rows up to the token's own.
struct SeenRows {
  StepRows step;
  CachePages rows, window;
  int page_tokens;
  SeenCounts counts;
  const int* chosen = nullptr;  ///< [T, n_listed], rising: which of the others where there are more; null: the first
  int n_listed = 0;

  SeenRows(const Tensor& cache, const StepTensors& where, const Tensor& list = {})
      : step(where), rows(cache), page_tokens(static_cast<int>(cache.dim(1))), counts(counts_of(list)) {
    list_rows(list);
  }
  explicit SeenRows(const CompressedAttentionArgs& a)
      : step(a.step), window(a.window), page_tokens(static_cast<int>(a.window.dim(1))), counts(counts_of(a)) {
    if (a.compressed) rows = CachePages(a.compressed);
    list_rows(a.chosen);
  }

  static SeenCounts counts_of(const Tensor& list) { return {0, 1, list ? static_cast<int>(list.dim(1)) : INT_MAX}; }
  static SeenCounts counts_of(const CompressedAttentionArgs& a) {
    return {static_cast<int>(a.window_tokens), a.compressed ? static_cast<int>(a.ratio) : INT_MAX,
            counts_of(a.chosen).most};
  }

 private:
  void list_rows(const Tensor& list) {
    if (!list) return;
    chosen = list.as<const int>();
    n_listed = static_cast<int>(list.dim(1));
  }
};

/// What one token sees.
struct TokenRows {
  const int* pages;
  const int* chosen;  ///< null: the first rows
  int n, n_window, first_of_window;

  FATHOM_DEVICE TokenRows(const SeenRows& s, int64_t t) : pages(pages_of(s.step, t)) {
    const int position = s.step.positions[t];
    n = rows_seen(s.counts, position);
    n_window = window_rows(s.counts, position);
    first_of_window = position + 1 - n_window;
    chosen = s.chosen != nullptr ? s.chosen + t * s.n_listed : nullptr;
  }
};

/// Row i < n of them. Rows of several tokens are in their last one's page.
FATHOM_DEVICE Bytes seen_row(const SeenRows& s, const TokenRows& token, int i) {
  if (i < token.n_window) return cached_row(s.window, token.pages, token.first_of_window + i);
  const int w = token.chosen != nullptr ? token.chosen[i - token.n_window] : i - token.n_window;
  if (s.counts.ratio == 1) return cached_row(s.rows, token.pages, w);
  const int last = s.counts.ratio * w + s.counts.ratio - 1;
  return s.rows.data + token.pages[last / s.page_tokens] * s.rows.page_bytes +
         static_cast<int64_t>(last % s.page_tokens / s.counts.ratio) * s.rows.row_bytes;
}

}  // namespace fathom::cuda
