#include "core/quant/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/encode.h"

namespace fathom {
namespace {

std::string number(float v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", static_cast<double>(v));
  return text;
}

[[noreturn]] void refuse(DType dtype, int64_t at, const std::string& what, const std::string& expected, float got) {
  throw Error(ErrorCode::kModel, "quantize to " + std::string(dtype_name(dtype)) + ": " + what + " at element " +
                                     std::to_string(at) + "; expected " + expected + ", got " + number(got) +
                                     "; try a wider type or another source file");
}

void check_values(DType dtype, const float* src, int64_t n, float largest_allowed) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(std::abs(src[i]) <= largest_allowed)) {
      refuse(dtype, i, "a value that the type cannot hold", "a magnitude up to " + number(largest_allowed), src[i]);
    }
  }
}

/// Weights of a block: importance, plus a thousandth of the mean, so that elements never seen active keep some
/// accuracy. Scaled to a mean near one; all ones where there is no importance.
void block_weights(const float* importance, int n, float* w) {
  double sum = 0;
  if (importance != nullptr) {
    for (int i = 0; i < n; ++i) sum += importance[i];
  }
  if (sum < 1e-30) {
    std::fill(w, w + n, 1.0f);
    return;
  }
  const double to_mean_one = static_cast<double>(n) / sum;
  for (int i = 0; i < n; ++i) w[i] = static_cast<float>(importance[i] * to_mean_one) + 1e-3f;
}

template <typename Block>
void encode_blocks(const float* src, void* dst, int64_t n, int block_elements, const float* importance) {
  auto* blocks = static_cast<Block*>(dst);
  float w[kSuperBlock];
  std::fill(w, w + kSuperBlock, 1.0f);
  for (int64_t i = 0; i < n / block_elements; ++i) {
    if (importance != nullptr) block_weights(importance + i * block_elements, block_elements, w);
    quant::encode(src + i * block_elements, w, &blocks[i]);
  }
}

template <typename Convert>
void convert_to_16(const float* src, void* dst, int64_t n, Convert convert) {
  auto* bytes = static_cast<char*>(dst);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t half = convert(src[i]);
    std::memcpy(bytes + 2 * i, &half, 2);
  }
}

}  // namespace

bool can_quantize(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype_info(dtype).is_quantized;
}

void quantize_row(DType dtype, const float* src, void* dst, int64_t n, const float* importance) {
  if (n == 0) return;
  const DTypeInfo& info = dtype_info(dtype);
  FATHOM_CHECK(can_quantize(dtype), std::string(info.name) + " is not a type to quantize to");
  FATHOM_CHECK(n > 0 && n % info.block_elements == 0,
               std::to_string(n) + " elements do not divide into blocks of " + std::string(info.name));
  // The last values that round down to the largest finite half and bfloat16.
  check_values(dtype, src, n,
               dtype == DType::kF16    ? 65519.996f
               : dtype == DType::kBF16 ? std::bit_cast<float>(0x7f7f7fffu)
                                       : std::numeric_limits<float>::max());
  if (importance != nullptr) {
    for (int64_t i = 0; i < n; ++i) {
      if (!(importance[i] >= 0 && importance[i] <= std::numeric_limits<float>::max())) {
        refuse(dtype, i, "an unusable importance", "a finite number from 0 up", importance[i]);
      }
    }
  }
  const int block = info.block_elements;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      return convert_to_16(src, dst, n, f32_to_f16);
    case DType::kBF16:
      return convert_to_16(src, dst, n, f32_to_bf16);
    case DType::kQ4_0:
      return encode_blocks<BlockQ4_0>(src, dst, n, block, importance);
    case DType::kQ4_1:
      return encode_blocks<BlockQ4_1>(src, dst, n, block, importance);
    case DType::kQ5_0:
      return encode_blocks<BlockQ5_0>(src, dst, n, block, importance);
    case DType::kQ5_1:
      return encode_blocks<BlockQ5_1>(src, dst, n, block, importance);
    case DType::kQ8_0:
      return encode_blocks<BlockQ8_0>(src, dst, n, block, importance);
    case DType::kQ2_K:
      return encode_blocks<BlockQ2_K>(src, dst, n, block, importance);
    case DType::kQ3_K:
      return encode_blocks<BlockQ3_K>(src, dst, n, block, importance);
    case DType::kQ4_K:
      return encode_blocks<BlockQ4_K>(src, dst, n, block, importance);
    case DType::kQ5_K:
      return encode_blocks<BlockQ5_K>(src, dst, n, block, importance);
    case DType::kQ6_K:
      return encode_blocks<BlockQ6_K>(src, dst, n, block, importance);
    case DType::kIQ4_NL:
      return encode_blocks<BlockIQ4_NL>(src, dst, n, block, importance);
    case DType::kIQ4_XS:
      return encode_blocks<BlockIQ4_XS>(src, dst, n, block, importance);
    case DType::kIQ2_XXS:
      return encode_blocks<BlockIQ2_XXS>(src, dst, n, block, importance);
    case DType::kIQ2_XS:
      return encode_blocks<BlockIQ2_XS>(src, dst, n, block, importance);
    case DType::kIQ2_S:
      return encode_blocks<BlockIQ2_S>(src, dst, n, block, importance);
    case DType::kIQ3_XXS:
      return encode_blocks<BlockIQ3_XXS>(src, dst, n, block, importance);
    case DType::kIQ3_S:
      return encode_blocks<BlockIQ3_S>(src, dst, n, block, importance);
    case DType::kIQ1_S:
      return encode_blocks<BlockIQ1_S>(src, dst, n, block, importance);
    case DType::kIQ1_M:
      return encode_blocks<BlockIQ1_M>(src, dst, n, block, importance);
    case DType::kMXFP4:
      return encode_blocks<BlockMXFP4>(src, dst, n, block, importance);
    case DType::kF64:
    case DType::kI8:
    case DType::kI16:
    case DType::kI32:
    case DType::kI64:
    case DType::kF8_E4M3:
      break;
  }
}

}  // namespace fathom
