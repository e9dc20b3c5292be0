// Hugging Face safetensors: one file, or a folder with an index over many; and a small writer.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "io/mapped_file.h"

namespace fathom {

constexpr uint64_t kSafetensorsMaxHeaderBytes = uint64_t{32} << 20;  // V3 in one file would need about 12 MiB
constexpr uint64_t kSafetensorsMaxIndexBytes = uint64_t{64} << 20;   // V3's index has 9 MB

enum class SafetensorsType {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8_E4M3,
  kF8_E5M2,
  kF8_E8M0,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool
};

/// The format's name of it: "BF16".
std::string_view safetensors_type_name(SafetensorsType type);
int safetensors_type_bytes(SafetensorsType type);
/// The same type among tensors; nothing for those that are bytes to us (U8, BOOL, F8_E8M0, F8_E5M2, U16 to U64).
std::optional<DType> safetensors_dtype(SafetensorsType type);

/// A tensor of an open file; `data` views the mapping.
struct SafetensorsTensor {
  SafetensorsType type = SafetensorsType::kF32;
  std::vector<int64_t> shape;  ///< slowest first; empty: one element
  const std::byte* data = nullptr;
  uint64_t size_bytes = 0;
  uint64_t offset_bytes = 0;  ///< from the start of its file
  const MappedFile* file = nullptr;

  /// As a Tensor (a scalar as [1]). Throws Error{kModel} naming `name` for types without DType and for more than 4
  /// dimensions.
  Tensor view(std::string_view name) const;
};

/// Tensors by name over the files of a checkpoint. Must outlive what views it. Const use from many threads is fine.
class SafetensorsModel {
 public:
  /// `path`: a .safetensors file, an .index.json, or a folder with model.safetensors.index.json or model.safetensors.
  /// With an index exactly the tensors it names are there, each from the file it names. Reads headers only. Throws
  /// Error{kModel} naming file, tensor and byte offset.
  static SafetensorsModel open(const std::string& path);

  const std::map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }
  const SafetensorsTensor* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const {
    return metadata_;
  }  ///< "__metadata__" of the first file
  const std::vector<std::shared_ptr<MappedFile>>& files() const { return files_; }
  uint64_t size_bytes() const;
  void check_intact() const;  ///< as GgufModel::check_intact

 private:
  std::map<std::string, SafetensorsTensor> tensors_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::shared_ptr<MappedFile>> files_;
};

/// A tensor to write; `data` holds as many bytes as type and shape say.
struct SafetensorsItem {
  std::string name;
  SafetensorsType type;
  std::vector<int64_t> shape;
  const void* data;
};

/// Writes a file, whole or not at all. Larger elements stand first, so that every tensor is aligned. Names must differ
/// (checked). Throws Error{kRuntime} with the system's reason.
void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace fathom
