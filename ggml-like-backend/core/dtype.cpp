#include "core/dtype.h"

#include <array>
#include <string>

#include "core/error.h"

namespace fathom {
namespace {

// Sizes: GGUF block layouts, drawn in core/quant/*.h.
constexpr std::array kInfos = {
    DTypeInfo{DType::kF32, "f32", 1, 4, false},
    DTypeInfo{DType::kF16, "f16", 1, 2, false},
    DTypeInfo{DType::kBF16, "bf16", 1, 2, false},
    DTypeInfo{DType::kF64, "f64", 1, 8, false},
    DTypeInfo{DType::kI8, "i8", 1, 1, false},
    DTypeInfo{DType::kI16, "i16", 1, 2, false},
    DTypeInfo{DType::kI32, "i32", 1, 4, false},
    DTypeInfo{DType::kI64, "i64", 1, 8, false},
    DTypeInfo{DType::kF8_E4M3, "f8_e4m3", 1, 1, false},
    DTypeInfo{DType::kQ4_0, "q4_0", 32, 18, true},
    DTypeInfo{DType::kQ4_1, "q4_1", 32, 20, true},
    DTypeInfo{DType::kQ5_0, "q5_0", 32, 22, true},
    DTypeInfo{DType::kQ5_1, "q5_1", 32, 24, true},
    DTypeInfo{DType::kQ8_0, "q8_0", 32, 34, true},
    DTypeInfo{DType::kQ2_K, "q2_k", 256, 84, true},
    DTypeInfo{DType::kQ3_K, "q3_k", 256, 110, true},
    DTypeInfo{DType::kQ4_K, "q4_k", 256, 144, true},
    DTypeInfo{DType::kQ5_K, "q5_k", 256, 176, true},
    DTypeInfo{DType::kQ6_K, "q6_k", 256, 210, true},
    DTypeInfo{DType::kIQ4_NL, "iq4_nl", 32, 18, true},
    DTypeInfo{DType::kIQ4_XS, "iq4_xs", 256, 136, true},
    DTypeInfo{DType::kIQ2_XXS, "iq2_xxs", 256, 66, true},
    DTypeInfo{DType::kIQ2_XS, "iq2_xs", 256, 74, true},
    DTypeInfo{DType::kIQ2_S, "iq2_s", 256, 82, true},
    DTypeInfo{DType::kIQ3_XXS, "iq3_xxs", 256, 98, true},
    DTypeInfo{DType::kIQ3_S, "iq3_s", 256, 110, true},
    DTypeInfo{DType::kIQ1_S, "iq1_s", 256, 50, true},
    DTypeInfo{DType::kIQ1_M, "iq1_m", 256, 56, true},
    DTypeInfo{DType::kMXFP4, "mxfp4", 32, 17, true},
};

}  // namespace

const DTypeInfo& dtype_info(DType dtype) {
  for (const DTypeInfo& info : kInfos) {
    if (info.dtype == dtype) return info;
  }
  FATHOM_CHECK(false, "no such dtype: " + std::to_string(static_cast<uint32_t>(dtype)));
  return kInfos[0];
}

size_t row_bytes(DType dtype, int64_t n_elements) {
  const DTypeInfo& info = dtype_info(dtype);
  FATHOM_CHECK(
      n_elements >= 0 && n_elements % info.block_elements == 0,
      "a row of " + std::to_string(n_elements) + " elements does not divide into blocks of " + std::string(info.name));
  return static_cast<size_t>(n_elements / info.block_elements) * static_cast<size_t>(info.block_bytes);
}

std::optional<DType> dtype_from_gguf(uint32_t type) {
  for (const DTypeInfo& info : kInfos) {
    if (static_cast<uint32_t>(info.dtype) == type && info.dtype != DType::kF8_E4M3) return info.dtype;
  }
  return std::nullopt;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  auto same = [](std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      const char c = a[i] >= 'A' && a[i] <= 'Z' ? static_cast<char>(a[i] - 'A' + 'a') : a[i];
      if (c != b[i]) return false;
    }
    return true;
  };
  for (const DTypeInfo& info : kInfos) {
    if (same(name, info.name)) return info.dtype;
  }
  return std::nullopt;
}

}  // namespace fathom
