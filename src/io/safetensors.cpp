#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "core/printable.h"
#include "io/safetensors_json.h"

namespace fathom {
namespace {

struct TypeInfo {
  SafetensorsType type;
  std::string_view name;
  int bytes;
  std::optional<DType> dtype;
};

constexpr std::array kTypes = {
    TypeInfo{SafetensorsType::kF64, "F64", 8, DType::kF64},
    TypeInfo{SafetensorsType::kF32, "F32", 4, DType::kF32},
    TypeInfo{SafetensorsType::kF16, "F16", 2, DType::kF16},
    TypeInfo{SafetensorsType::kBF16, "BF16", 2, DType::kBF16},
    TypeInfo{SafetensorsType::kF8_E4M3, "F8_E4M3", 1, DType::kF8_E4M3},
    TypeInfo{SafetensorsType::kF8_E5M2, "F8_E5M2", 1, std::nullopt},
    TypeInfo{SafetensorsType::kF8_E8M0, "F8_E8M0", 1, std::nullopt},
    TypeInfo{SafetensorsType::kI64, "I64", 8, DType::kI64},
    TypeInfo{SafetensorsType::kI32, "I32", 4, DType::kI32},
    TypeInfo{SafetensorsType::kI16, "I16", 2, DType::kI16},
    TypeInfo{SafetensorsType::kI8, "I8", 1, DType::kI8},
    TypeInfo{SafetensorsType::kU64, "U64", 8, std::nullopt},
    TypeInfo{SafetensorsType::kU32, "U32", 4, std::nullopt},
    TypeInfo{SafetensorsType::kU16, "U16", 2, std::nullopt},
    TypeInfo{SafetensorsType::kU8, "U8", 1, std::nullopt},
    TypeInfo{SafetensorsType::kBool, "BOOL", 1, std::nullopt},
};

const TypeInfo& info_of(SafetensorsType type) {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeInfo& t) { return t.type == type; });
  FATHOM_CHECK(it != kTypes.end(), "no such safetensors type");
  return *it;
}

[[noreturn]] void fail(const std::string& path, const std::string& what, const std::string& expected,
                       const std::string& got, const std::string& hint = "download the file again") {
  throw Error(ErrorCode::kModel,
              printable(path, 400) + ": " + what + "; expected " + expected + ", got " + got + "; try to " + hint);
}

std::string at(uint64_t offset) { return " (byte offset " + std::to_string(offset) + ")"; }

// One entry of the header against the bytes of the data section.
SafetensorsTensor check_entry(const SafetensorsEntry& entry, const MappedFile& file, uint64_t data_offset) {
  const std::string what = "tensor " + in_quotes(entry.name);
  const auto type =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeInfo& t) { return t.name == entry.dtype; });
  if (type == kTypes.end())
    fail(file.path(), what + " has an unknown dtype", "F64, F32, F16, BF16, F8_*, I8 to I64, U8 to U64 or BOOL",
         in_quotes(entry.dtype), "convert the model");
  uint64_t size = static_cast<uint64_t>(type->bytes);
  std::vector<int64_t> shape;
  for (const uint64_t dim : entry.shape) {
    // Zeros count as ones while the product is checked: a shape of [0, 2^62, 2^62] has no elements and is still
    // nonsense.
    if (dim > static_cast<uint64_t>(INT64_MAX) || __builtin_mul_overflow(size, std::max<uint64_t>(dim, 1), &size) ||
        size > static_cast<uint64_t>(INT64_MAX)) {
      fail(file.path(), "the shape of " + what + " overflows", "fewer than 2^63 bytes",
           "a dimension of " + std::to_string(dim));
    }
    shape.push_back(static_cast<int64_t>(dim));
  }
  if (std::find(entry.shape.begin(), entry.shape.end(), 0u) != entry.shape.end()) size = 0;
  const uint64_t n_data_bytes = file.size_bytes() - data_offset;
  if (entry.begin > entry.end || entry.end > n_data_bytes) {
    fail(file.path(), "the data of " + what + " does not lie in the file" + at(data_offset),
         "0 <= begin <= end <= " + std::to_string(n_data_bytes),
         std::to_string(entry.begin) + " to " + std::to_string(entry.end),
         "download the file again, it seems to be incomplete");
  }
  if (entry.end - entry.begin != size) {
    fail(file.path(), "dtype and shape of " + what + " do not match its data" + at(data_offset + entry.begin),
         std::to_string(size) + " bytes", std::to_string(entry.end - entry.begin));
  }
  return {type->type, std::move(shape),          file.data() + data_offset + entry.begin,
          size,       data_offset + entry.begin, &file};
}

using TensorMap = std::map<std::string, SafetensorsTensor>;

TensorMap read_file(const MappedFile& file, std::map<std::string, std::string>& metadata) {
  const std::string& path = file.path();
  if (file.size_bytes() < 8)
    fail(path, "too short for a safetensors file", "at least 8 bytes", std::to_string(file.size_bytes()));
  constexpr std::string_view kPointer = "version https://git-lfs";
  if (file.size_bytes() > kPointer.size() && std::memcmp(file.data(), kPointer.data(), kPointer.size()) == 0)
    throw Error(ErrorCode::kModel, printable(path, 400) +
                                       ": Git LFS's pointer to a file, not the file; expected "
                                       "safetensors, got a few lines of text; try git lfs pull in that folder");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > file.size_bytes() - 8) {
    fail(path, "the header is longer than the file" + at(0),
         "at most " + std::to_string(file.size_bytes() - 8) + " bytes", std::to_string(header_bytes));
  }
  if (header_bytes > kSafetensorsMaxHeaderBytes) {
    fail(path, "the header is too long" + at(0), "at most " + std::to_string(kSafetensorsMaxHeaderBytes) + " bytes",
         std::to_string(header_bytes));
  }
  const std::string_view json(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  SafetensorsHeader header = parse_safetensors_header(path, json);
  metadata = std::move(header.metadata);
  const uint64_t data_offset = 8 + header_bytes;
  TensorMap tensors;
  for (const SafetensorsEntry& entry : header.entries) {
    if (!tensors.emplace(entry.name, check_entry(entry, file, data_offset)).second) {
      fail(path, "the tensor " + in_quotes(entry.name) + " appears twice", "every tensor once", "a second one");
    }
  }
  std::vector<const SafetensorsEntry*> by_place;
  for (const SafetensorsEntry& entry : header.entries) by_place.push_back(&entry);
  std::sort(by_place.begin(), by_place.end(),
            [](const auto* a, const auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  for (size_t i = 1; i < by_place.size(); ++i) {
    if (by_place[i]->begin < by_place[i - 1]->end) {
      fail(path,
           "tensors " + in_quotes(by_place[i - 1]->name) + " and " + in_quotes(by_place[i]->name) + " overlap" +
               at(data_offset + by_place[i]->begin),
           "a begin of at least " + std::to_string(by_place[i - 1]->end), std::to_string(by_place[i]->begin));
    }
  }
  file.check_intact();
  return tensors;
}

std::string index_or_file_in(const std::string& folder) {
  for (const char* name : {"model.safetensors.index.json", "model.safetensors"}) {
    const std::filesystem::path path = std::filesystem::path(folder) / name;
    std::error_code error;
    if (std::filesystem::exists(std::filesystem::symlink_status(path, error))) return path.string();
  }
  fail(folder, "no model in this folder", "model.safetensors.index.json or model.safetensors", "neither",
       "give a GGUF file or a Hugging Face folder");
}

std::map<std::string, std::string> read_index(const std::string& path) {
  const std::shared_ptr<MappedFile> file = MappedFile::open(path);
  if (file->size_bytes() > kSafetensorsMaxIndexBytes) {
    fail(path, "the index is too long", "at most " + std::to_string(kSafetensorsMaxIndexBytes) + " bytes",
         std::to_string(file->size_bytes()));
  }
  std::map<std::string, std::string> index =
      parse_safetensors_index(path, std::string_view(reinterpret_cast<const char*>(file->data()), file->size_bytes()));
  for (const auto& [name, file_name] : index) {
    const bool is_plain = !file_name.empty() && file_name != "." && file_name != ".." &&
                          file_name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    if (!is_plain)
      fail(path, "the index sends tensor " + in_quotes(name) + " outside its folder", "a plain file name",
           in_quotes(file_name));
  }
  return index;
}

}  // namespace

std::string_view safetensors_type_name(SafetensorsType type) { return info_of(type).name; }
int safetensors_type_bytes(SafetensorsType type) { return info_of(type).bytes; }
std::optional<DType> safetensors_dtype(SafetensorsType type) { return info_of(type).dtype; }

Tensor SafetensorsTensor::view(std::string_view name) const {
  const std::optional<DType> dtype = safetensors_dtype(type);
  if (!dtype || shape.size() > static_cast<size_t>(kMaxDims)) {
    throw Error(ErrorCode::kModel,
                printable(file->path(), 400) + ": tensor " + in_quotes(name) +
                    " cannot be used as it is; expected a float or signed type in at most 4 dimensions, got " +
                    std::string(safetensors_type_name(type)) + " in " + std::to_string(shape.size()) +
                    "; try another conversion of the model");
  }
  Shape dims;
  for (const int64_t dim : shape) dims.dims[static_cast<size_t>(dims.rank++)] = dim;
  if (shape.empty()) dims = {1};
  return Tensor(*dtype, dims, const_cast<std::byte*>(data));
}

SafetensorsModel SafetensorsModel::open(const std::string& path) {
  SafetensorsModel model;
  std::error_code error;
  const std::string found = std::filesystem::is_directory(path, error) ? index_or_file_in(path) : path;
  if (!found.ends_with(".json")) {
    model.files_.push_back(MappedFile::open(found));
    model.tensors_ = read_file(*model.files_.back(), model.metadata_);
    return model;
  }
  const std::map<std::string, std::string> index = read_index(found);
  std::map<std::string, TensorMap> by_file;
  for (const auto& [name, file_name] : index) by_file.try_emplace(file_name);
  for (auto& [file_name, tensors] : by_file) {
    model.files_.push_back(MappedFile::open((std::filesystem::path(found).parent_path() / file_name).string()));
    std::map<std::string, std::string> metadata;
    tensors = read_file(*model.files_.back(), metadata);
    if (model.files_.size() == 1) model.metadata_ = std::move(metadata);
  }
  for (const auto& [name, file_name] : index) {
    const TensorMap& tensors = by_file.at(file_name);
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end())
      fail(found, "the index is wrong", "tensor " + in_quotes(name) + " in " + in_quotes(file_name),
           "a file without it");
    model.tensors_.emplace(name, tensor->second);
  }
  return model;
}

const SafetensorsTensor* SafetensorsModel::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t SafetensorsModel::size_bytes() const {
  uint64_t sum = 0;
  for (const auto& file : files_) sum += file->size_bytes();
  return sum;
}

void SafetensorsModel::check_intact() const {
  for (const auto& file : files_) file->check_intact();
}

}  // namespace fathom
