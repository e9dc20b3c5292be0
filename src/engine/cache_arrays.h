// Between what a model says it caches and what the cache's pages hold.
#pragma once

#include <vector>

#include "cache/pages.h"
#include "deepseek/config.h"

namespace fathom {

/// The rows of Config::cache_rows() as layers and recent rows; those that need not be exact get `dtype`.
CacheLayout cache_layout(const deepseek::Config& config, DType dtype);

/// The pool's arrays in the order of Config::cache_rows(): deepseek::Step::caches.
std::vector<Tensor> cache_arrays(const deepseek::Config& config, const PagePool& pool);
/// The same without data, for n_pages.
std::vector<Tensor> cache_arrays(const deepseek::Config& config, const CacheLayout& layout, int64_t n_pages);

}  // namespace fathom
