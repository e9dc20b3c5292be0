// Element types of tensors, GGUF's numbering, and how many bytes a run of elements takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fathom {

/// Values are ggml's type ids, so that a GGUF type number converts by cast after dtype_from_gguf has accepted it.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kMXFP4 = 39,
  kF8_E4M3 = 1000,  ///< not a GGUF type: FP8 of safetensors and of cache pages
};

/// Elements are stored in blocks of `block_elements` that take `block_bytes` bytes, packed along the fastest dimension.
struct DTypeInfo {
  DType dtype;
  std::string_view name;  ///< lower case, as on the command line: "q4_k"
  int block_elements;
  int block_bytes;
  bool is_quantized;
};

const DTypeInfo& dtype_info(DType dtype);
inline std::string_view dtype_name(DType dtype) { return dtype_info(dtype).name; }

/// Bytes of a row of n_elements; n_elements must be a multiple of the block (checked).
size_t row_bytes(DType dtype, int64_t n_elements);

/// The type a GGUF file means by this number, or nothing if fathom cannot read it.
std::optional<DType> dtype_from_gguf(uint32_t type);

/// The type called `name` ("q4_k", "bf16", any case), or nothing.
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace fathom
