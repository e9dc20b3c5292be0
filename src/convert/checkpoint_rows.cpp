#include "convert/checkpoint_rows.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

class StackedRows final : public RowSource {
 public:
  explicit StackedRows(std::vector<SourceMatrix> parts) : parts_(std::move(parts)) {
    is_uniform_ = std::all_of(parts_.begin(), parts_.end(),
                              [&](const SourceMatrix& p) { return p.type() == parts_.front().type(); });
  }
  void read(int64_t first, int64_t count, float* out) const override {
    each(first, count, [&](const SourceMatrix& part, int64_t row, int64_t n) {
      part.read(row, n, out);
      out += n * part.cols();
    });
  }
  bool store(DType dtype, int64_t first, int64_t count, std::byte* out) const override {
    if (!is_uniform_ || dtype != parts_.front().type()) return false;
    each(first, count, [&](const SourceMatrix& part, int64_t row, int64_t n) {
      part.copy(row, n, out);
      out += static_cast<size_t>(n) * row_bytes(dtype, part.cols());
    });
    return true;
  }
  const std::byte* in_place(DType dtype) const override {
    return parts_.size() == 1 ? parts_.front().in_place(dtype) : nullptr;
  }
  void release() const override {
    for (const SourceMatrix& part : parts_) part.release();
  }

 private:
  template <typename Fn> void each(int64_t first, int64_t count, Fn&& fn) const {
    const int64_t rows = parts_.front().rows();
    while (count > 0) {
      const int64_t row = first % rows, n = std::min(count, rows - row);
      fn(parts_[static_cast<size_t>(first / rows)], row, n);
      first += n;
      count -= n;
    }
  }

  std::vector<SourceMatrix> parts_;
  bool is_uniform_;
};

class RotaryRows final : public RowSource {
 public:
  RotaryRows(SourceMatrix matrix, int64_t n_heads) : matrix_(std::move(matrix)), head_rows_(matrix_.rows() / n_heads) {}
  void read(int64_t first, int64_t count, float* out) const override {
    for (int64_t i = 0; i < count; ++i) matrix_.read(source_row(first + i), 1, out + i * matrix_.cols());
  }
  bool store(DType dtype, int64_t first, int64_t count, std::byte* out) const override {
    if (dtype != matrix_.type() || dtype == DType::kF8_E4M3) return false;
    const size_t width = row_bytes(dtype, matrix_.cols());
    for (int64_t i = 0; i < count; ++i) matrix_.copy(source_row(first + i), 1, out + static_cast<size_t>(i) * width);
    return true;
  }
  void release() const override { matrix_.release(); }

 private:
  int64_t source_row(int64_t row) const {
    const int64_t in_head = row % head_rows_;
    return row - in_head + in_head % 2 * (head_rows_ / 2) + in_head / 2;
  }

  SourceMatrix matrix_;
  int64_t head_rows_;
};

class TransposedKeys final : public RowSource {
 public:
  TransposedKeys(SourceMatrix kv_b, int64_t n_heads, int64_t nope)
      : kv_b_(std::move(kv_b)), head_rows_(kv_b_.rows() / n_heads), nope_(nope) {}
  void read(int64_t first, int64_t count, float* out) const override {
    const int64_t latent = kv_b_.cols();
    std::vector<float> keys(static_cast<size_t>(nope_ * latent));
    while (count > 0) {
      const int64_t head = first / latent, from = first % latent, n = std::min(count, latent - from);
      kv_b_.read(head * head_rows_, nope_, keys.data());
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < nope_; ++j) out[i * nope_ + j] = keys[static_cast<size_t>(j * latent + from + i)];
      }
      out += n * nope_;
      first += n;
      count -= n;
    }
  }
  int64_t quantum() const override { return kv_b_.cols(); }

 private:
  SourceMatrix kv_b_;
  int64_t head_rows_, nope_;
};

class ValueRows final : public RowSource {
 public:
  ValueRows(SourceMatrix kv_b, int64_t n_heads, int64_t nope)
      : kv_b_(std::move(kv_b)), head_rows_(kv_b_.rows() / n_heads), nope_(nope) {}
  void read(int64_t first, int64_t count, float* out) const override {
    const int64_t v = head_rows_ - nope_;
    for (int64_t i = 0; i < count; ++i)
      kv_b_.read((first + i) / v * head_rows_ + nope_ + (first + i) % v, 1, out + i * kv_b_.cols());
  }
  void release() const override { kv_b_.release(); }

 private:
  SourceMatrix kv_b_;
  int64_t head_rows_, nope_;
};

class SideBySide final : public RowSource {
 public:
  SideBySide(SourceMatrix left, SourceMatrix right) : left_(std::move(left)), right_(std::move(right)) {}
  void read(int64_t first, int64_t count, float* out) const override {
    for (int64_t i = 0; i < count; ++i) {
      left_.read(first + i, 1, out);
      right_.read(first + i, 1, out + left_.cols());
      out += left_.cols() + right_.cols();
    }
  }
  void release() const override {
    left_.release();
    right_.release();
  }

 private:
  SourceMatrix left_, right_;
};

class IntegerRows final : public RowSource {
 public:
  IntegerRows(const SafetensorsTensor& tensor, std::string name, int64_t limit)
      : tensor_(tensor), name_(std::move(name)), limit_(limit) {}
  void read(int64_t, int64_t, float*) const override {
    FATHOM_CHECK(false, "integers are copied, not read as floats: " + name_);
  }
  bool store(DType dtype, int64_t first, int64_t count, std::byte* out) const override {
    if (dtype != DType::kI32) return false;
    const int64_t cols = tensor_.shape.back();
    for (int64_t i = first * cols; i < (first + count) * cols; ++i) {
      int64_t value = 0;
      int32_t narrow = 0;
      if (tensor_.type == SafetensorsType::kI64) {
        std::memcpy(&value, tensor_.data + i * 8, 8);
      } else {
        std::memcpy(&narrow, tensor_.data + i * 4, 4);
        value = narrow;
      }
      if (value < 0 || value >= limit_) {
        throw Error(ErrorCode::kModel, printable(tensor_.file->path(), 400) + ": tensor " + in_quotes(name_) +
                                           " holds a number out of range; expected 0 to " + std::to_string(limit_ - 1) +
                                           ", got " + std::to_string(value) + "; try to download the checkpoint again");
      }
      narrow = static_cast<int32_t>(value);
      std::memcpy(out, &narrow, 4);
      out += 4;
    }
    return true;
  }

 private:
  const SafetensorsTensor& tensor_;
  std::string name_;
  int64_t limit_;
};

}  // namespace

std::shared_ptr<const RowSource> stacked_rows(std::vector<SourceMatrix> parts) {
  return std::make_shared<StackedRows>(std::move(parts));
}
std::shared_ptr<const RowSource> rotary_rows(SourceMatrix matrix, int64_t n_heads) {
  return std::make_shared<RotaryRows>(std::move(matrix), n_heads);
}
std::shared_ptr<const RowSource> transposed_keys(SourceMatrix kv_b, int64_t n_heads, int64_t nope) {
  return std::make_shared<TransposedKeys>(std::move(kv_b), n_heads, nope);
}
std::shared_ptr<const RowSource> value_rows(SourceMatrix kv_b, int64_t n_heads, int64_t nope) {
  return std::make_shared<ValueRows>(std::move(kv_b), n_heads, nope);
}
std::shared_ptr<const RowSource> side_by_side(SourceMatrix left, SourceMatrix right) {
  return std::make_shared<SideBySide>(std::move(left), std::move(right));
}
std::shared_ptr<const RowSource> integer_rows(const SafetensorsTensor& tensor, const std::string& name, int64_t limit) {
  return std::make_shared<IntegerRows>(tensor, name, limit);
}

}  // namespace fathom
