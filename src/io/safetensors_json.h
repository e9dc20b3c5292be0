// The two JSON texts of a safetensors checkpoint, read without building a tree: memory stays in proportion, nesting is
// refused.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// A tensor as the header describes it, unchecked but for the JSON kinds.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  ///< bytes, from the end of the header
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {"key": "text"}}.
/// Throws Error{kModel} naming path, tensor and position.
SafetensorsHeader parse_safetensors_header(const std::string& path, std::string_view json);

/// The "weight_map" of an index: tensor name -> file name. Throws Error{kModel}.
std::map<std::string, std::string> parse_safetensors_index(const std::string& path, std::string_view json);

}  // namespace fathom
