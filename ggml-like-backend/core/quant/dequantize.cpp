#include "core/quant/dequantize.h"

#include <cstring>
#include <string>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/encode.h"
#include "core/quant/fp8.h"
#include "core/quant/iq.h"
#include "core/quant/k_quants.h"
#include "core/quant/mxfp4.h"
#include "core/quant/simple.h"

namespace fathom {
namespace {

template <typename Block> void decode_blocks(const void* src, float* dst, int64_t n, int block_elements) {
  const auto* blocks = static_cast<const Block*>(src);
  for (int64_t i = 0; i < n / block_elements; ++i) quant::decode(blocks[i], dst + i * block_elements);
}

template <typename Element, typename Convert>
void convert_elements(const void* src, float* dst, int64_t n, Convert convert) {
  const auto* bytes = static_cast<const char*>(src);
  for (int64_t i = 0; i < n; ++i) {
    Element element;
    std::memcpy(&element, bytes + i * static_cast<int64_t>(sizeof(Element)), sizeof(Element));
    dst[i] = convert(element);
  }
}

}  // namespace

void dequantize_row(DType dtype, const void* src, float* dst, int64_t n) {
  if (n == 0) return;
  const DTypeInfo& info = dtype_info(dtype);
  FATHOM_CHECK(n > 0 && n % info.block_elements == 0,
               std::to_string(n) + " elements do not divide into blocks of " + std::string(info.name));
  const int block = info.block_elements;
  switch (dtype) {
    case DType::kF32: std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float)); return;
    case DType::kF64: return convert_elements<double>(src, dst, n, [](double v) { return static_cast<float>(v); });
    case DType::kF16: return quant::usable_encoders().sets[0]->widen_halves(src, dst, n);
    case DType::kBF16: return convert_elements<uint16_t>(src, dst, n, bf16_to_f32);
    case DType::kF8_E4M3: return convert_elements<uint8_t>(src, dst, n, f8_e4m3_to_f32);
    case DType::kQ4_0: return decode_blocks<BlockQ4_0>(src, dst, n, block);
    case DType::kQ4_1: return decode_blocks<BlockQ4_1>(src, dst, n, block);
    case DType::kQ5_0: return decode_blocks<BlockQ5_0>(src, dst, n, block);
    case DType::kQ5_1: return decode_blocks<BlockQ5_1>(src, dst, n, block);
    case DType::kQ8_0: return decode_blocks<BlockQ8_0>(src, dst, n, block);
    case DType::kQ2_K: return decode_blocks<BlockQ2_K>(src, dst, n, block);
    case DType::kQ3_K: return decode_blocks<BlockQ3_K>(src, dst, n, block);
    case DType::kQ4_K: return decode_blocks<BlockQ4_K>(src, dst, n, block);
    case DType::kQ5_K: return decode_blocks<BlockQ5_K>(src, dst, n, block);
    case DType::kQ6_K: return decode_blocks<BlockQ6_K>(src, dst, n, block);
    case DType::kIQ4_NL: return decode_blocks<BlockIQ4_NL>(src, dst, n, block);
    case DType::kIQ4_XS: return decode_blocks<BlockIQ4_XS>(src, dst, n, block);
    case DType::kIQ2_XXS: return decode_blocks<BlockIQ2_XXS>(src, dst, n, block);
    case DType::kIQ2_XS: return decode_blocks<BlockIQ2_XS>(src, dst, n, block);
    case DType::kIQ2_S: return decode_blocks<BlockIQ2_S>(src, dst, n, block);
    case DType::kIQ3_XXS: return decode_blocks<BlockIQ3_XXS>(src, dst, n, block);
    case DType::kIQ3_S: return decode_blocks<BlockIQ3_S>(src, dst, n, block);
    case DType::kIQ1_S: return decode_blocks<BlockIQ1_S>(src, dst, n, block);
    case DType::kIQ1_M: return decode_blocks<BlockIQ1_M>(src, dst, n, block);
    case DType::kMXFP4: return decode_blocks<BlockMXFP4>(src, dst, n, block);
    case DType::kI8:
    case DType::kI16:
    case DType::kI32:
    case DType::kI64: break;
  }
  FATHOM_CHECK(false, std::string(info.name) + " elements are not weights");
}

}  // namespace fathom
