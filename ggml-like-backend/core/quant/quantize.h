// From floats to the stored formats, a row at a time: what the converter and the quantizer write.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fathom {

namespace quant {
struct Encoders;
}

/// Encodes src[n] as `dtype` at dst (row_bytes(dtype, n) bytes, any address). n must divide into blocks (checked).
/// importance[n], or null for none: mean square of the activation that each element meets. The encoders search for the
/// block that minimises sum(importance * (x - decoded)^2), so that the error of the matrix product is smallest; without
/// importance, the plain squared error.
/// Types: F32 F16 BF16, every block format of dtype.h. Throws Error{kModel} for NaN, infinity, a negative importance
/// and for values beyond what the type can hold. Thread-safe; the first use of an IQ2, IQ3 or IQ1 type builds its
/// search tables (0.01 to 0.13 s). The result does not depend on threads, on the instruction set or on how rows are
/// grouped.
void quantize_row(DType dtype, const float* src, void* dst, int64_t n, const float* importance);

/// The same with the encoders of one instruction set (quant/encode.h), for tests: the bytes do not differ.
void quantize_row_by(const quant::Encoders& encoders, DType dtype, const float* src, void* dst, int64_t n,
                     const float* importance);

/// Whether quantize_row can write this type.
bool can_quantize(DType dtype);

}  // namespace fathom
