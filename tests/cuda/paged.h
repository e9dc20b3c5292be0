// Caches of shuffled pages with rows of several sequences.
#pragma once

#include "cpu/store_row.h"
#include "on_device.h"

namespace fathom::testing {

struct Part {
  int64_t n_past, n_new;
};

/// A cache of shuffled pages with rows of several sequences; rows that nobody stored are NaN bytes.
struct Paged {
  HostTensors h;
  Tensor cache;
  StepTensors step;

  Paged(std::vector<Part> parts, int64_t row, DType type, int64_t table_width, uint32_t seed = 11) : h(seed) {
    int64_t n_pages = 0, n_tokens = 0;
    for (const Part& p : parts) n_pages += (p.n_past + p.n_new + 63) / 64, n_tokens += p.n_new;
    std::vector<int32_t> pages(static_cast<size_t>(n_pages));
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    for (size_t i = pages.size(); i > 1; --i)
      std::swap(pages[i - 1], pages[static_cast<size_t>(h.below(static_cast<int32_t>(i)))]);
    cache = h.make(type, {n_pages, 64, row});
    std::memset(cache.data, 0xff, cache.size_bytes());
    const auto n_parts = static_cast<int64_t>(parts.size());
    step.page_table = h.ints({n_parts, table_width}, [](int64_t) { return -1; });
    step.positions = h.ints({n_tokens}, [](int64_t) { return 0; });
    step.sequence_of = h.ints({n_tokens}, [](int64_t) { return 0; });
    size_t next = 0;
    int64_t t = 0;
    for (int64_t s = 0; s < n_parts; ++s) {
      const Part& part = parts[static_cast<size_t>(s)];
      int32_t* table = step.page_table.row_as<int32_t>(s);
      for (int64_t p = 0; p < part.n_past + part.n_new; ++p) {
        if (p % 64 == 0) table[p / 64] = pages[next++];
        const Tensor values = h.floats({row});
        cpu::store_row(type, values.as<float>(), cpu::cache_row(cache, table[p / 64] * 64 + p % 64), row);
        if (p < part.n_past) continue;
        step.positions.as<int32_t>()[t] = static_cast<int32_t>(p);
        step.sequence_of.as<int32_t>()[t++] = static_cast<int32_t>(s);
      }
    }
  }
  int64_t n_tokens() const { return step.positions.dim(0); }
};

/// Another cache of the same pages: a row for every `tokens_per_row` tokens that are all there, its values from
/// `values`; the others are NaN bytes.
inline Tensor rows_of_tokens(Paged& p, const std::vector<Part>& parts, int64_t row, DType type, int64_t tokens_per_row,
                             const std::function<Tensor()>& values) {
  const int64_t page_rows = std::max<int64_t>(1, 64 / tokens_per_row);
  const Tensor cache = p.h.make(type, {p.cache.dim(0), page_rows, row});
  std::memset(cache.data, 0xff, cache.size_bytes());
  for (int64_t s = 0; s < p.step.page_table.dim(0); ++s) {
    const Part& part = parts[static_cast<size_t>(s)];
    for (int64_t w = 0; w < (part.n_past + part.n_new) / tokens_per_row; ++w) {
      const int64_t last = tokens_per_row * w + tokens_per_row - 1;
      const int32_t page = p.step.page_table.row_as<int32_t>(s)[last / 64];
      cpu::store_row(type, values().as<float>(), cpu::cache_row(cache, page * page_rows + last % 64 / tokens_per_row),
                     row);
    }
  }
  return cache;
}

}  // namespace fathom::testing
