// Which attention kernels run, and decoding of rows at vector speed.
#pragma once

#include <string_view>

#include "core/dtype.h"
#include "cpu/attention_kernels.h"

namespace fathom::cpu::fast {

/// The kernels of an instruction set ("avx512"; all others: AVX2's) for a cache type: on bf16 operands where the cache
/// is no finer than bf16 and the machine can multiply them, on floats otherwise. V3.2 has f16 pages because its choice
/// of rows hangs on small differences: on bf16 operands logits of the fixture v32 are off by 0.11 in place of 0.001
/// (90th percentile).
const AttentionKernels& attention_kernels(std::string_view isa, DType cache);
/// For the absorbed form: on int8 where the cache is q8_0, the instruction set multiplies bytes, the dimensions are
/// whole chunks and the query rows of a token whole blocks (so that all that share one see the same rows: how weights
/// are rounded depends on them); attention_kernels otherwise.
const AttentionKernels& absorbed_attention_kernels(std::string_view isa, DType cache, int64_t n_heads, int64_t key_dim,
                                                   int64_t value_dim);
/// The ones on floats.
const AttentionKernels& float_attention_kernels(std::string_view isa);

/// dequantize_row, faster, within a rounding of it.
void decode_row(const AttentionKernels& k, DType dtype, const std::byte* src, float* dst, int64_t n);

/// Elements [offset, offset + n) of a stored row, whose blocks are decoded whole: `dst` has room for kSpanSlack more.
constexpr int64_t kSpanSlack = 64;
void decode_span(const AttentionKernels& k, DType dtype, const std::byte* row, int64_t offset, float* dst, int64_t n);

}  // namespace fathom::cpu::fast
