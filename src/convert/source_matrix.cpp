#include "convert/source_matrix.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "core/printable.h"
#include "core/quant/dequantize.h"
#include "core/quant/fp8.h"

namespace fathom {
namespace {

constexpr int64_t kFp4Block = 32;
constexpr int kMxfp4Bytes = 17;  // the factor, then 16 bytes of nibbles

constexpr std::string_view kWeight = "weight";

[[noreturn]] void refuse(const SafetensorsTensor& tensor, const std::string& name, const std::string& what,
                         const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::kModel, printable(tensor.file->path(), 400) + ": tensor " + in_quotes(name) + " " + what +
                                     "; expected " + expected + ", got " + got +
                                     "; try to download the checkpoint again");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

/// The two places of a weight's factors: V3's, V4's.
std::string v3_scale_name(const std::string& name) { return name + "_scale_inv"; }
std::string v4_scale_name(const std::string& name) {
  return name.ends_with(kWeight) ? name.substr(0, name.size() - kWeight.size()) + "scale" : std::string();
}

const SafetensorsTensor* find_scale(const SafetensorsModel& model, const std::string& name, std::string& found) {
  for (const std::string& candidate : {v3_scale_name(name), v4_scale_name(name)}) {
    const SafetensorsTensor* scale = candidate.empty() ? nullptr : model.find(candidate);
    if (scale == nullptr) continue;
    found = candidate;
    return scale;
  }
  return nullptr;
}

/// The checkpoint's pairs have the even column low; a block of MXFP4 has its first half low and its second half high.
/// Codes and factors are the same.
void to_mxfp4(std::byte scale, const std::byte* pairs, std::byte* block) {
  const auto nibble = [&](int column) { return static_cast<uint8_t>(pairs[column / 2]) >> (4 * (column % 2)) & 15; };
  block[0] = scale;
  for (int j = 0; j < 16; ++j) block[1 + j] = static_cast<std::byte>(nibble(j) | nibble(16 + j) << 4);
}

bool is_e8m0(SafetensorsType type) { return type == SafetensorsType::kF8_E8M0 || type == SafetensorsType::kU8; }

}  // namespace

SourceMatrix SourceMatrix::bind(const SafetensorsModel& model, const HfConfig& config, const std::string& name,
                                int64_t rows, int64_t cols) {
  SourceMatrix m;
  m.weight_ = model.find(name);
  m.rows_ = rows;
  m.cols_ = cols;
  if (m.weight_ == nullptr) {
    throw Error(ErrorCode::kModel, printable(config.path, 400) + ": the checkpoint lacks a tensor; expected " +
                                       in_quotes(name) + " as this configuration asks for, got " +
                                       std::to_string(model.tensors().size()) +
                                       " others; try to download the checkpoint again, or its own config.json");
  }
  const SafetensorsTensor& w = *m.weight_;
  const bool is_fp4 = w.type == SafetensorsType::kI8 || w.type == SafetensorsType::kU8;
  const std::vector<int64_t> wanted = rows == 1 && w.shape.size() <= 1
                                          ? std::vector<int64_t>{cols}
                                          : std::vector<int64_t>{rows, is_fp4 ? cols / 2 : cols};
  const bool is_scalar = w.shape.empty() && rows == 1 && cols == 1;
  if (w.shape != wanted && !is_scalar) refuse(w, name, "has another shape", shape_text(wanted), shape_text(w.shape));
  switch (w.type) {
    case SafetensorsType::kF32: m.type_ = DType::kF32; break;
    case SafetensorsType::kF16: m.type_ = DType::kF16; break;
    case SafetensorsType::kBF16: m.type_ = DType::kBF16; break;
    case SafetensorsType::kF8_E4M3: m.type_ = DType::kF8_E4M3; break;
    case SafetensorsType::kI8:
    case SafetensorsType::kU8: m.type_ = DType::kMXFP4; break;
    default:
      refuse(w, name, "has a type that no weight has", "F32, F16, BF16, F8_E4M3 or I8 (pairs of FP4)",
             std::string(safetensors_type_name(w.type)));
  }
  if (m.type_ == DType::kF8_E4M3 || m.type_ == DType::kMXFP4) m.bind_scales(model, config, name);
  return m;
}

void SourceMatrix::bind_scales(const SafetensorsModel& model, const HfConfig& config, const std::string& name) {
  std::string scale_name;
  scale_ = find_scale(model, name, scale_name);
  if (scale_ == nullptr)
    refuse(*weight_, name, "has no factors", in_quotes(v3_scale_name(name)) + " or " + in_quotes(v4_scale_name(name)),
           "neither");
  const SafetensorsTensor& s = *scale_;
  const bool is_float =
      s.type == SafetensorsType::kF32 || s.type == SafetensorsType::kBF16 || s.type == SafetensorsType::kF16;
  if (type_ == DType::kMXFP4) {
    block_ = {1, kFp4Block};
    if (cols_ % kFp4Block != 0)
      refuse(*weight_, name, "has a width that FP4 blocks do not fit", "a multiple of " + std::to_string(kFp4Block),
             std::to_string(cols_));
    if (!is_e8m0(s.type))
      refuse(s, scale_name, "has another type", "F8_E8M0", std::string(safetensors_type_name(s.type)));
  } else {
    if (!is_float && !is_e8m0(s.type))
      refuse(s, scale_name, "has a type that no factors have", "F32, BF16, F16 or F8_E8M0",
             std::string(safetensors_type_name(s.type)));
    uint64_t n_elements = 1;
    for (const int64_t dim : s.shape)
      n_elements *= static_cast<uint64_t>(dim);  // within the file: checked when it was opened
    if (n_elements == 1) {
      block_ = {rows_, cols_};
      scale_cols_ = 1;
      return;
    }
    if (!config.fp8_block) {
      throw Error(ErrorCode::kModel, printable(config.path, 400) +
                                         ": field 'quantization_config.weight_block_size' is missing; expected rows "
                                         "and columns of a block of FP8 weights such as " +
                                         in_quotes(name) + ", got nothing; try the checkpoint's own config.json");
    }
    block_ = *config.fp8_block;
  }
  scale_cols_ = divided_up(cols_, block_.cols);
  const std::vector<int64_t> wanted = {divided_up(rows_, block_.rows), scale_cols_};
  if (s.shape != wanted) {
    refuse(s, scale_name,
           "does not fit blocks of " + std::to_string(block_.rows) + " x " + std::to_string(block_.cols) +
               " in a weight of [" + std::to_string(rows_) + ", " + std::to_string(cols_) + "]",
           shape_text(wanted), shape_text(s.shape));
  }
}

float SourceMatrix::scale_at(int64_t block_row, int64_t block_col) const {
  const std::byte* at = scale_->data + (block_row * scale_cols_ + block_col) * safetensors_type_bytes(scale_->type);
  if (is_e8m0(scale_->type)) return e8m0_to_f32(static_cast<uint8_t>(*at));
  float value = 0;
  dequantize_row(*safetensors_dtype(scale_->type), at, &value, 1);
  return value;
}

void SourceMatrix::read(int64_t first, int64_t count, float* out) const {
  if (type_ == DType::kMXFP4) {
    std::byte block[kMxfp4Bytes];
    for (int64_t i = 0; i < count * (cols_ / kFp4Block); ++i) {
      const int64_t blocks_before = first * (cols_ / kFp4Block) + i;
      to_mxfp4(scale_->data[blocks_before], weight_->data + blocks_before * (kFp4Block / 2), block);
      dequantize_row(DType::kMXFP4, block, out + i * kFp4Block, kFp4Block);
    }
    return;
  }
  dequantize_row(type_,
                 weight_->data + static_cast<uint64_t>(first * cols_) *
                                     static_cast<uint64_t>(safetensors_type_bytes(weight_->type)),
                 out, count * cols_);
  if (type_ != DType::kF8_E4M3) return;
  for (int64_t row = 0; row < count; ++row) {
    float* values = out + row * cols_;
    for (int64_t b = 0; b < scale_cols_; ++b) {
      const float scale = scale_at((first + row) / block_.rows, b);
      const int64_t end = std::min(cols_, (b + 1) * block_.cols);
      for (int64_t j = b * block_.cols; j < end; ++j) values[j] *= scale;
    }
  }
}

void SourceMatrix::copy(int64_t first, int64_t count, std::byte* out) const {
  FATHOM_CHECK(type_ != DType::kF8_E4M3, "FP8 has no form of its own in the file");
  if (type_ != DType::kMXFP4) {
    const size_t width = row_bytes(type_, cols_);
    std::memcpy(out, weight_->data + static_cast<size_t>(first) * width, static_cast<size_t>(count) * width);
    return;
  }
  for (int64_t i = 0; i < count * (cols_ / kFp4Block); ++i) {
    const int64_t blocks_before = first * (cols_ / kFp4Block) + i;
    to_mxfp4(scale_->data[blocks_before], weight_->data + blocks_before * (kFp4Block / 2), out + i * kMxfp4Bytes);
  }
}

const std::byte* SourceMatrix::in_place(DType dtype) const {
  const bool is_plain = type_ == DType::kF32 || type_ == DType::kF16 || type_ == DType::kBF16;
  return is_plain && dtype == type_ ? weight_->data : nullptr;
}

void SourceMatrix::release() const {
  weight_->file->advise(MappedFile::Access::kDontNeed, weight_->offset_bytes, weight_->size_bytes);
  if (scale_ != nullptr) scale_->file->advise(MappedFile::Access::kDontNeed, scale_->offset_bytes, scale_->size_bytes);
}

bool SourceMatrix::is_scale_of(const std::string& scale_name, const SafetensorsModel& model) {
  constexpr std::string_view kV3 = "_scale_inv", kV4 = ".scale";
  if (scale_name.ends_with(kV3)) return model.find(scale_name.substr(0, scale_name.size() - kV3.size())) != nullptr;
  if (scale_name.ends_with(kV4))
    return model.find(scale_name.substr(0, scale_name.size() - kV4.size()) + ".weight") != nullptr;
  return false;
}

}  // namespace fathom
