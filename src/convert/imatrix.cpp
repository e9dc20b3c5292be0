#include "convert/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "core/printable.h"
#include "io/gguf_file.h"
#include "io/gguf_writer.h"
#include "io/mapped_file.h"

namespace fathom {
namespace {

constexpr int64_t kMaxEntries = 1 << 20, kMaxNameBytes = 4096, kMaxValues = int64_t{1} << 28;

[[noreturn]] void refuse(const std::string& path, const std::string& what, const std::string& expected,
                         const std::string& got) {
  throw Error(ErrorCode::kModel, printable(path, 400) + ": " + what + "; expected " + expected + ", got " + got +
                                     "; try another importance matrix");
}

void check_values(const std::string& path, const std::string& name, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] >= 0 && std::isfinite(values[i])))
      refuse(path, "entry " + in_quotes(name) + " holds an impossible mean square", "a finite number from 0 up",
             std::to_string(values[i]) + " at " + std::to_string(i));
  }
}

/// A cursor over the binary form.
class Cursor {
 public:
  Cursor(const std::string& path, const std::byte* data, uint64_t size) : path_(path), data_(data), left_(size) {}
  bool at_end() const { return left_ == 0; }
  const std::byte* take(uint64_t n, const std::string& what) {
    if (n > left_) refuse(path_, "the file ends within " + what, std::to_string(n) + " bytes", std::to_string(left_));
    const std::byte* at = data_;
    data_ += n;
    left_ -= n;
    return at;
  }
  int64_t i32(int64_t low, int64_t high, const std::string& what) {
    int32_t value = 0;
    std::memcpy(&value, take(4, what), 4);
    if (value < low || value > high)
      refuse(path_, what + " is out of range", std::to_string(low) + " to " + std::to_string(high),
             std::to_string(value));
    return value;
  }
  std::string text(int64_t n, const std::string& what) {
    return std::string(reinterpret_cast<const char*>(take(static_cast<uint64_t>(n), what)), static_cast<size_t>(n));
  }

 private:
  const std::string& path_;
  const std::byte* data_;
  uint64_t left_;
};

struct Contents {
  std::map<std::string, std::vector<float>> values;
  std::string dataset;
  int64_t n_chunks = 0;
};

Contents read_binary(const std::string& path, const MappedFile& file) {
  Contents out;
  Cursor in(path, file.data(), file.size_bytes());
  const int64_t n_entries = in.i32(1, kMaxEntries, "the number of entries");
  for (int64_t k = 0; k < n_entries; ++k) {
    const std::string where = "entry " + std::to_string(k);
    const std::string name = in.text(in.i32(1, kMaxNameBytes, "the name length of " + where), "the name of " + where);
    const int64_t n_calls = in.i32(0, INT32_MAX, "the calls of " + in_quotes(name));
    const int64_t n_values = in.i32(1, kMaxValues, "the number of values of " + in_quotes(name));
    std::vector<float> values(static_cast<size_t>(n_values));
    const std::byte* at = in.take(static_cast<uint64_t>(n_values) * sizeof(float), "the values of " + in_quotes(name));
    std::memcpy(values.data(), at, values.size() * sizeof(float));
    for (float& v : values) v /= static_cast<float>(std::max<int64_t>(1, n_calls));
    check_values(path, name, values);
    if (!out.values.emplace(name, std::move(values)).second)
      refuse(path, "entry " + in_quotes(name) + " appears twice", "every tensor once", "a second one");
  }
  if (!in.at_end()) {
    out.n_chunks = in.i32(0, INT32_MAX, "the number of chunks");
    if (!in.at_end())
      out.dataset = in.text(in.i32(0, kMaxNameBytes, "the length of the text file's name"), "the text file's name");
  }
  return out;
}

const GgufTensorInfo* tensor_named(const GgufFile& gguf, const std::string& name) {
  for (const GgufTensorInfo& t : gguf.tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

Contents read_gguf(const std::string& path) {
  constexpr std::string_view kSums = ".in_sum2";
  const GgufFile gguf = read_gguf_file(path, /*header_only=*/false);
  const std::string* type = gguf.metadata.text("general.type");
  if (type == nullptr || *type != "imatrix")
    refuse(path, "not an importance matrix", "general.type 'imatrix'", type == nullptr ? "none" : in_quotes(*type));
  Contents out;
  for (const GgufTensorInfo& sums : gguf.tensors) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const GgufTensorInfo* counts = tensor_named(gguf, name + ".counts");
    const int64_t n = sums.shape.n_elements();
    const int64_t n_matrices = counts == nullptr ? 0 : counts->shape.n_elements();
    if (sums.dtype != DType::kF32 || n_matrices < 1 || counts->dtype != DType::kF32 || n % n_matrices != 0) {
      refuse(path, "entry " + in_quotes(name) + " is incomplete", "F32 sums and a count for each matrix",
             std::to_string(n) + " sums and " + std::to_string(n_matrices) + " counts");
    }
    std::vector<float> values(static_cast<size_t>(n)), count(static_cast<size_t>(n_matrices));
    std::memcpy(values.data(), gguf.file->data() + sums.offset_bytes, values.size() * sizeof(float));
    std::memcpy(count.data(), gguf.file->data() + counts->offset_bytes, count.size() * sizeof(float));
    const size_t width = values.size() / count.size();
    // A matrix that no token met has no sums: nothing is known of it, all its columns count alike.
    for (size_t i = 0; i < values.size(); ++i) values[i] = count[i / width] > 0 ? values[i] / count[i / width] : 1.0F;
    check_values(path, name, values);
    out.values.emplace(name, std::move(values));
  }
  if (out.values.empty())
    refuse(path, "an importance matrix without entries", "tensors NAME.in_sum2 and NAME.counts", "none");
  out.n_chunks = gguf.metadata.integer("imatrix.chunk_count").value_or(0);
  if (const auto* datasets = gguf.metadata.texts("imatrix.datasets"); datasets != nullptr && !datasets->empty())
    out.dataset = datasets->front();
  return out;
}

}  // namespace

ImportanceMatrix ImportanceMatrix::read(const std::string& path) {
  const std::shared_ptr<MappedFile> file = MappedFile::open(path);
  const bool is_gguf = file->size_bytes() >= 4 && std::memcmp(file->data(), "GGUF", 4) == 0;
  Contents contents = is_gguf ? read_gguf(path) : read_binary(path, *file);
  ImportanceMatrix out;
  out.path_ = path;
  out.values_ = std::move(contents.values);
  out.dataset_ = std::move(contents.dataset);
  out.n_chunks_ = contents.n_chunks;
  return out;
}

const float* ImportanceMatrix::find(const std::string& tensor, const Shape& shape, int64_t matrix) const {
  const auto it = values_.find(tensor);
  if (it == values_.end()) return nullptr;
  const int64_t width = shape.last(), n_matrices = shape.rank >= 3 ? shape[0] : 1,
                n = static_cast<int64_t>(it->second.size());
  if (n != width && n != width * n_matrices) {
    refuse(path_, "entry " + in_quotes(tensor) + " does not fit the tensor " + shape.to_string(),
           std::to_string(width) + " values, or as many for each of " + std::to_string(n_matrices) + " matrices",
           std::to_string(n));
  }
  return it->second.data() + (n == width ? 0 : matrix * width);
}

void write_importance_matrix(const std::string& path, const std::map<std::string, InputSquares>& tensors,
                             const ImportanceOrigin& origin) {
  GgufWriter writer(path);
  writer.set_text("general.type", "imatrix");
  writer.set_texts("imatrix.datasets", {origin.dataset});
  writer.set_u32("imatrix.chunk_count", static_cast<uint32_t>(origin.n_chunks));
  writer.set_u32("imatrix.chunk_size", static_cast<uint32_t>(origin.chunk_tokens));
  for (const auto& [name, squares] : tensors) {
    const auto n_matrices = static_cast<int64_t>(squares.counts.size());
    writer.add_tensor(name + ".in_sum2", DType::kF32, {n_matrices, squares.width});
    writer.add_tensor(name + ".counts", DType::kF32, {n_matrices, 1});
  }
  writer.begin();
  for (const auto& [name, squares] : tensors) {
    const std::vector<float> sums(squares.sums.begin(), squares.sums.end()),
        counts(squares.counts.begin(), squares.counts.end());
    writer.write(name + ".in_sum2", sums.data(), sums.size() * sizeof(float));
    writer.write(name + ".counts", counts.data(), counts.size() * sizeof(float));
  }
  writer.finish();
}

}  // namespace fathom
