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

void check_values(const quant::Encoders& encoders, DType dtype, const float* src, int64_t n, float largest_allowed) {
  if (encoders.largest(src, n) <= largest_allowed) return;
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

void encode_blocks(quant::EncodeBlocks encode, const DTypeInfo& info, const float* src, void* dst, int64_t n,
                   const float* importance) {
  if (importance == nullptr) {
    encode(src, nullptr, dst, n / info.block_elements);
    return;
  }
  constexpr int64_t kWeightsAtOnce = 2 * kSuperBlock;  // blocks enough for every instruction set's lanes
  float w[kWeightsAtOnce];
  auto* block = static_cast<std::byte*>(dst);
  for (int64_t first = 0; first < n; first += kWeightsAtOnce) {
    const int64_t count = std::min(kWeightsAtOnce, n - first), n_blocks = count / info.block_elements;
    for (int64_t i = 0; i < count; i += info.block_elements)
      block_weights(importance + first + i, info.block_elements, w + i);
    encode(src + first, w, block, n_blocks);
    block += n_blocks * static_cast<int64_t>(info.block_bytes);
  }
}

template <typename Convert> void convert_to_16(const float* src, void* dst, int64_t n, Convert convert) {
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
  quantize_row_by(*quant::usable_encoders().sets[0], dtype, src, dst, n, importance);
}

void quantize_row_by(const quant::Encoders& encoders, DType dtype, const float* src, void* dst, int64_t n,
                     const float* importance) {
  if (n == 0) return;
  const DTypeInfo& info = dtype_info(dtype);
  FATHOM_CHECK(can_quantize(dtype), std::string(info.name) + " is not a type to quantize to");
  FATHOM_CHECK(n > 0 && n % info.block_elements == 0,
               std::to_string(n) + " elements do not divide into blocks of " + std::string(info.name));
  // The last values that round down to the largest finite half and bfloat16.
  check_values(encoders, dtype, src, n,
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
  if (dtype == DType::kF32) {
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
  } else if (dtype == DType::kF16) {
    convert_to_16(src, dst, n, f32_to_f16);
  } else if (dtype == DType::kBF16) {
    convert_to_16(src, dst, n, f32_to_bf16);
  } else {
    encode_blocks(encoders.by_type[static_cast<size_t>(dtype)], info, src, dst, n, importance);
  }
}

}  // namespace fathom
