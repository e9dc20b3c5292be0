// One GGUF file, versions 2 and 3: its metadata and where its tensors lie. Reads the header alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/metadata.h"
#include "core/tensor.h"
#include "io/gguf_types.h"
#include "io/mapped_file.h"

namespace fathom {

// Limits on top of "no more than the bytes left": far above every real file, and what bounds the memory of a hostile
// one.
constexpr uint64_t kGgufMaxHeaderBytes = uint64_t{1} << 30;
constexpr uint64_t kGgufMaxEntries = uint64_t{1} << 20;        // keys, tensors: V3 has about 1100 tensors
constexpr uint64_t kGgufMaxKeyBytes = 65535;                   // GGUF's own limit
constexpr uint64_t kGgufMaxTensorNameBytes = 63;               // ggml's 64 with the final zero
constexpr uint64_t kGgufMaxStringBytes = uint64_t{64} << 20;   // chat templates take about 10 KiB
constexpr uint64_t kGgufMaxArrayElements = uint64_t{1} << 25;  // vocabularies have about 2^17
constexpr uint64_t kGgufDefaultAlignment = 32;
constexpr uint64_t kGgufMinAlignment = 8;                  // what 8-byte elements need
constexpr uint64_t kGgufMaxAlignment = uint64_t{2} << 20;  // a huge page

/// A tensor as the file describes it.
struct GgufTensorInfo {
  std::string name;
  DType dtype;
  Shape shape;            ///< slowest first: the file's dimensions reversed
  uint64_t offset_bytes;  ///< of its first byte, from the start of the file
  uint64_t size_bytes;
  uint64_t info_at;  ///< byte offset of its description, for messages
};

/// The type an array or value has in the file, which Metadata folds away: "i32", "array of u8".
struct GgufStoredType {
  GgufValueType type;
  GgufValueType element = GgufValueType::kU8;  ///< of arrays
  uint64_t at = 0;                             ///< byte offset of the key, for messages
  std::string text() const;
};

struct GgufFile {
  std::shared_ptr<MappedFile> file;
  uint32_t version = 0;
  uint64_t alignment = kGgufDefaultAlignment;
  uint64_t data_offset = 0;  ///< where the tensors' bytes begin
  Metadata metadata;
  std::map<std::string, GgufStoredType> stored_types;  ///< same keys as metadata
  std::vector<GgufTensorInfo> tensors;                 ///< in the file's order, by rising offset
  std::optional<std::string> missing_data;  ///< why not every tensor is there whole; only where that was tolerated
};

/// Maps and reads `path`. Every count, length, offset and product is checked against the bytes of the file before
/// anything is allocated from it. Throws Error{kModel} with path and byte offset. A file that ends before its tensors'
/// bytes is refused; with header_only, one of which there is nothing but the header is accepted and `missing_data` set.
GgufFile read_gguf_file(const std::string& path, bool header_only);

}  // namespace fathom
