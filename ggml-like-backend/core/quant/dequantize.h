// From stored elements of any type to float, a row at a time: the scalar definition that every kernel is tested
// against.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fathom {

/// Decodes n elements of `dtype` at `src` (any address) to dst[n]. Floating types, FP8 (without its scales) and every
/// block format; n must divide into blocks (checked; integer types are refused by the same check). Exact: one rounding
/// per product and sum of the format's formula. Thread-safe.
void dequantize_row(DType dtype, const void* src, float* dst, int64_t n);

}  // namespace fathom
