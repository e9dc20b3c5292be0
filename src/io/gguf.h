// A model in GGUF files: metadata and tensors by name, over one file or all shards of a split one.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/metadata.h"
#include "core/tensor.h"
#include "io/gguf_file.h"
#include "io/mapped_file.h"

namespace fathom {

struct GgufOptions {
  /// Metadata and shapes are enough: a file that ends where its tensors' bytes should begin is accepted (not one that
  /// ends among them), and every tensor's data is null.
  bool header_only = false;
};

/// Where a tensor's bytes lie, for readers that want them without the mapping.
struct FileSpan {
  const MappedFile* file;
  uint64_t offset_bytes;
  uint64_t size_bytes;
};

/// An open GGUF model. Tensors view the mapped files: they must not outlive the model or a copy of files(). Const use
/// from many threads is fine.
class GgufModel {
 public:
  /// Opens `path`; for any one shard of a split model (NAME-00002-of-00003.gguf) opens all of them and checks that they
  /// belong together. Reads headers only, however large the files. Refuses what no model can mean (gguf_checks.h).
  /// Throws Error{kModel} "path: what (byte offset N); expected .., got ..; try ..".
  static GgufModel open(const std::string& path, GgufOptions options = {});

  const Metadata& metadata() const { return files_.front().metadata; }
  /// Name -> view into the mapping, shape slowest first (GGUF's ne reversed): token_embd.weight is [W, D].
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  /// The tensor called `name`, or null.
  const Tensor* find(const std::string& name) const;

  /// The files in shard order, one of them if the model is not split.
  const std::vector<GgufFile>& files() const { return files_; }
  const std::string& path() const { return files_.front().file->path(); }  ///< of the first shard
  uint64_t size_bytes() const;                                             ///< of all files
  /// True where every tensor's bytes are there; only a header_only model can lack them.
  bool has_data() const { return has_data_; }

  /// File and offset of a tensor of this model, or of a slice of one; nothing for other memory.
  std::optional<FileSpan> locate(const Tensor& tensor) const;
  /// Throws Error{kModel} if a file was cut short since it was opened. Call after a forward pass (see MappedFile).
  void check_intact() const;

 private:
  std::vector<GgufFile> files_;
  std::map<std::string, Tensor> tensors_;
  bool has_data_ = true;
};

}  // namespace fathom
