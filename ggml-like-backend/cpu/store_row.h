// Rows of the cache: where a slot is, and how floats become its type.
#pragma once

#include <cstring>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/fp8.h"
#include "core/tensor.h"

namespace fathom::cpu {

/// The row of a flat slot (page_id * page_tokens + offset) in cache [pages, page_tokens, row].
inline std::byte* cache_row(const Tensor& cache, int64_t slot) {
  const int64_t page_tokens = cache.dim(1);
  return cache.data + (slot / page_tokens) * cache.strides_bytes[0] + (slot % page_tokens) * cache.strides_bytes[1];
}

/// Rounds n floats to a cache type (f32, f16, bf16, f8_e4m3, q8_0), to nearest even.
void store_row(DType dtype, const float* x, std::byte* out, int64_t n);

}  // namespace fathom::cpu
