// The common half of converting and quantizing: types for every tensor, then one streaming pass.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "convert/convert.h"
#include "convert/row_source.h"
#include "convert/type_mix.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"

namespace fathom {

struct ModelToWrite {
  std::vector<PlannedTensor> tensors;  ///< in file order
  MixContext context;
  std::string source_key;                         ///< which files these are, sizes and times: for resuming
  std::function<void(GgufWriter&)> set_metadata;  ///< all keys but those of the file's type
  std::function<void()> check_intact;             ///< throws if the source was cut while it was read
};

/// Decides the types, then writes unless it is a dry run. `notes` are put before those that arise here.
WriteReport write_model(const ModelToWrite& model, const WriteOptions& options, std::vector<std::string> notes);

/// Throws Error{kModel} for a folder.
void check_is_gguf_path(const std::string& in);
/// Throws Error{kUsage} naming `option` if `out` is one of the model's files.
void check_not_source(const std::string& out, const std::string& option, const GgufModel& in);

/// "path size time" of each file, for source_key.
std::string file_identity(const std::string& path);

}  // namespace fathom
