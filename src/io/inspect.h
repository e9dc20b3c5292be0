// What a model file holds, for people and for scripts. Reads headers only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/gguf.h"

namespace fathom {

struct InspectReport {
  struct File {
    std::string path;
    uint64_t size_bytes;
    uint64_t n_tensors;
  };
  struct TypeTotal {
    std::string type;
    uint64_t n_tensors = 0;
    uint64_t n_parameters = 0;
    uint64_t size_bytes = 0;
  };
  struct TensorLine {
    std::string name;
    std::string type;
    std::vector<int64_t> shape;  ///< slowest first
    uint64_t size_bytes;
    uint64_t offset_bytes;  ///< in its file
    size_t file;            ///< index into files
  };
  struct SpecialToken {
    std::string role;  ///< "bos", "eos", "padding" ...
    int64_t token_id;
    std::string text;
  };

  std::string path;
  std::string format;  ///< "GGUF 3", "safetensors"
  std::string architecture;
  std::string name;
  std::string type;  ///< "q4_k_m": what the file says, else the type of most bytes
  uint64_t size_bytes = 0;
  uint64_t n_parameters = 0;
  std::vector<File> files;
  std::vector<TypeTotal> types;  ///< most bytes first
  std::vector<TensorLine> tensors;
  nlohmann::ordered_json configuration =
      nlohmann::ordered_json::object();  ///< scalars; arrays as {"array": type, "count": n}
  std::string tokenizer_model;
  std::string tokenizer_pre;
  uint64_t n_tokens = 0;
  uint64_t n_merges = 0;
  std::vector<SpecialToken> special_tokens;
  std::optional<std::string> chat_template;
};

/// `path`: GGUF file or shard, safetensors file, or Hugging Face folder. Throws Error{kModel} as opening it for use
/// would, except that a file which ends before its tensors' bytes is enough.
InspectReport inspect_model(const std::string& path);

/// "q4_k_m" and the like: general.file_type, or the type that takes most bytes, or "none" without tensors.
std::string model_type_name(const GgufModel& model);

/// Control characters of the file's texts are escaped; ends with a newline.
std::string inspect_text(const InspectReport& report, bool with_tensors);
/// Invalid UTF-8 in the file's texts becomes U+FFFD when dumped with error_handler_t::replace, as inspect_json_text
/// does.
nlohmann::ordered_json inspect_json(const InspectReport& report, bool with_tensors);
std::string inspect_json_text(const InspectReport& report, bool with_tensors);

}  // namespace fathom
