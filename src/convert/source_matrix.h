// A weight of a checkpoint as rows of floats, whatever it is stored as.
#pragma once

#include <cstdint>
#include <string>

#include "convert/hf_config.h"
#include "core/dtype.h"
#include "io/safetensors.h"

namespace fathom {

/// Views the mapped checkpoint. How it may be stored:
///   F32, F16, BF16;
///   FP8: F8_E4M3 [rows, cols] and one factor per block of rows and columns, F32/BF16/F16 or F8_E8M0
///     [ceil(rows / block rows), ceil(cols / block cols)], called X.weight_scale_inv (V3) or X.scale (V4), or a single
///     one;
///   FP4: I8 [rows, cols / 2] of e2m1 pairs, even column low, and F8_E8M0 factors [rows, cols / 32] called X.scale.
class SourceMatrix {
 public:
  /// Finds `name` and its factors. [rows, cols] is what the configuration asks for; a vector is one row. Throws
  /// Error{kModel} naming file and tensor where it is missing, has another shape or type, or its factors do not fit the
  /// block size.
  static SourceMatrix bind(const SafetensorsModel& model, const HfConfig& config, const std::string& name, int64_t rows,
                           int64_t cols);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// kF32, kF16, kBF16, kMXFP4 or kF8_E4M3 (with factors).
  DType type() const { return type_; }
  uint64_t size_bytes() const { return weight_->size_bytes; }

  void read(int64_t first, int64_t count, float* out) const;
  /// Rows as stored in type(), without rounding; FP4 in MXFP4's order of nibbles. Not for FP8.
  void copy(int64_t first, int64_t count, std::byte* out) const;
  /// Its bytes in the mapped file, where they are rows of `dtype`; else null.
  const std::byte* in_place(DType dtype) const;
  void release() const;

  /// Whether `name` belongs to another tensor as its factors.
  static bool is_scale_of(const std::string& scale_name, const SafetensorsModel& model);

 private:
  void bind_scales(const SafetensorsModel& model, const HfConfig& config, const std::string& name);
  float scale_at(int64_t block_row, int64_t block_col) const;

  const SafetensorsTensor* weight_ = nullptr;
  const SafetensorsTensor* scale_ = nullptr;
  int64_t rows_ = 0, cols_ = 0;
  DType type_ = DType::kF32;
  ScaleBlock block_{1, 1};
  int64_t scale_cols_ = 0;
};

}  // namespace fathom
