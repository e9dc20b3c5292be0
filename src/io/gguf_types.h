// GGUF's numbers for value and tensor types, with names for messages: also those of tensor types that only others read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace fathom {

enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
constexpr uint32_t kGgufValueTypeCount = 13;

/// "u8", "string" ...; only for the thirteen above.
std::string_view gguf_value_type_name(GgufValueType type);

/// Bytes a value of this type takes in a file; for strings the 8 of their length, for arrays the 12 of their head.
uint64_t gguf_value_min_bytes(GgufValueType type);

/// The tensor type in words: "12 (Q4_K)", "139 (IQ4_K of ik_llama.cpp)", "77 (unknown)".
std::string gguf_tensor_type_text(uint32_t type);

/// The mix that general.file_type stands for, as on the command line: 15 is "q4_k_m". Nothing for numbers of other
/// programs.
std::optional<std::string_view> gguf_file_type_name(int64_t file_type);

}  // namespace fathom
