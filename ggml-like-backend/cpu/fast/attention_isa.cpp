#include "cpu/fast/attention_isa.h"

#include <cstring>

#include "core/error.h"
#include "core/quant/dequantize.h"

namespace fathom::cpu::fast {

const AttentionKernels& float_attention_kernels(std::string_view isa) {
  return isa == "avx512" ? avx512::attention_f32 : avx2::attention_f32;
}

const AttentionKernels& attention_kernels(std::string_view isa, DType cache) {
  static const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
  const bool coarse = cache != DType::kF32 && cache != DType::kF16;
  return isa == "avx512" && has_bf16 && coarse ? avx512::attention_bf16 : float_attention_kernels(isa);
}

const AttentionKernels& absorbed_attention_kernels(std::string_view isa, DType cache, int64_t n_heads, int64_t key_dim,
                                                   int64_t value_dim) {
  const AttentionKernels* integers = isa == "avx512"     ? &avx512::attention_int8
                                     : isa == "avx_vnni" ? &avx_vnni::attention_int8
                                                         : nullptr;
  constexpr int64_t kChunk = 64;
  const bool fits = integers != nullptr && cache == DType::kQ8_0 && n_heads % integers->lanes == 0 &&
                    key_dim % kChunk == 0 && value_dim % kChunk == 0;
  return fits ? *integers : attention_kernels(isa, cache);
}

void decode_row(const AttentionKernels& k, DType dtype, const std::byte* src, float* dst, int64_t n) {
  if (const DecodeRow decode = k.row_decoder(static_cast<uint32_t>(dtype))) {
    decode(src, dst, n);
  } else {
    dequantize_row(dtype, src, dst, n);
  }
}

void decode_span(const AttentionKernels& k, DType dtype, const std::byte* row, int64_t offset, float* dst, int64_t n) {
  const DTypeInfo& info = dtype_info(dtype);
  const int64_t block = info.block_elements;
  const int64_t begin = offset / block * block, end = (offset + n + block - 1) / block * block;
  FATHOM_CHECK(block <= kSpanSlack / 2, "a cache row of blocks of at most 32");
  decode_row(k, dtype, row + begin / block * info.block_bytes, dst, end - begin);
  if (begin != offset) std::memmove(dst, dst + (offset - begin), static_cast<size_t>(n) * sizeof(float));
}

}  // namespace fathom::cpu::fast
