// Which attention kernels run, and decoding of rows at vector speed.
#pragma once

#include <string_view>

#include "core/dtype.h"
#include "cpu/attention_kernels.h"

namespace fathom::cpu::fast {

/// The kernels of an instruction set ("avx512"; all others: AVX2's) for a cache type: on floats for f32 and where the
/// machine cannot multiply bf16, on bf16 operands otherwise. Rows of f16 are rounded to them: queries and weights are
/// rounded as well, so that finer rows alone would not make the result finer.
const AttentionKernels& attention_kernels(std::string_view isa, DType cache);
/// The ones on floats.
const AttentionKernels& float_attention_kernels(std::string_view isa);

/// dequantize_row, faster, within a rounding of it.
void decode_row(const AttentionKernels& k, DType dtype, const std::byte* src, float* dst, int64_t n);

/// Elements [offset, offset + n) of a stored row, whose blocks are decoded whole: `dst` has room for kSpanSlack more.
constexpr int64_t kSpanSlack = 64;
void decode_span(const AttentionKernels& k, DType dtype, const std::byte* row, int64_t offset, float* dst, int64_t n);

}  // namespace fathom::cpu::fast
