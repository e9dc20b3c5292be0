#include "cpu/store_row.h"

#include <algorithm>
#include <cmath>

#include "core/quant/blocks.h"

namespace fathom::cpu {
namespace {

void store_q8_0(const float* x, std::byte* out, int64_t n) {
  for (int64_t b = 0; b < n / 32; ++b) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[b * 32 + i]));
    const uint16_t scale = f32_to_f16(largest / 127.0F);
    const float d = f16_to_f32(scale);
    const float inverse = d > 0 ? 1.0F / d : 0.0F;
    std::byte* block = out + b * 34;
    std::memcpy(block, &scale, 2);
    for (int i = 0; i < 32; ++i) {
      const float q = std::clamp(std::nearbyint(x[b * 32 + i] * inverse), -127.0F, 127.0F);
      block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(q));
    }
  }
}

}  // namespace

void store_row(DType dtype, const float* x, std::byte* out, int64_t n) {
  switch (dtype) {
    case DType::kF32: std::memcpy(out, x, static_cast<size_t>(n) * 4); return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(out)[i] = f32_to_f16(x[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(out)[i] = f32_to_bf16(x[i]);
      return;
    case DType::kF8_E4M3:
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<uint8_t*>(out)[i] = f32_to_f8_e4m3(x[i]);
      return;
    case DType::kQ8_0: store_q8_0(x, out, n); return;
    default: FATHOM_CHECK(false, "the cache cannot hold " + std::string(dtype_name(dtype)));
  }
}

}  // namespace fathom::cpu
