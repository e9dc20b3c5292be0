// A reader of small safetensors fixtures for tests, header only: F32, I32 and U8 tensors, whole file in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace fathom::testing {

class SafetensorsFixture {
 public:
  struct Entry {
    std::string dtype;  ///< "F32", "I32", "U8" ...
    std::vector<int64_t> shape;
    size_t begin = 0, end = 0;
  };

  /// Throws std::runtime_error if the file is absent or damaged.
  explicit SafetensorsFixture(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("fixture not found: " + path);
    uint64_t header_bytes = 0;
    file.read(reinterpret_cast<char*>(&header_bytes), 8);
    std::string header(header_bytes, '\0');
    file.read(header.data(), static_cast<std::streamsize>(header_bytes));
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    const nlohmann::json parsed = nlohmann::json::parse(header);
    for (const auto& [name, value] : parsed.items()) {
      if (name == "__metadata__") continue;
      Entry entry{value.at("dtype"), value.at("shape"), value.at("data_offsets").at(0), value.at("data_offsets").at(1)};
      if (entry.begin > entry.end || entry.end > bytes_.size()) throw std::runtime_error("fixture truncated: " + path);
      entries_.emplace(name, std::move(entry));
    }
  }

  bool has(const std::string& name) const { return entries_.count(name) != 0; }
  const Entry& entry(const std::string& name) const {
    const auto it = entries_.find(name);
    if (it == entries_.end()) throw std::runtime_error("fixture has no tensor " + name);
    return it->second;
  }
  const std::vector<int64_t>& shape(const std::string& name) const { return entry(name).shape; }
  const std::map<std::string, Entry>& entries() const { return entries_; }

  std::vector<float> f32(const std::string& name) const { return read<float>(name, "F32"); }
  std::vector<int32_t> i32(const std::string& name) const { return read<int32_t>(name, "I32"); }
  std::vector<uint8_t> u8(const std::string& name) const { return read<uint8_t>(name, "U8"); }

 private:
  template <typename T> std::vector<T> read(const std::string& name, const char* dtype) const {
    const Entry& e = entry(name);
    if (e.dtype != dtype) throw std::runtime_error("fixture tensor " + name + " is " + e.dtype + ", expected " + dtype);
    std::vector<T> values((e.end - e.begin) / sizeof(T));
    std::memcpy(values.data(), bytes_.data() + e.begin, values.size() * sizeof(T));
    return values;
  }

  std::vector<char> bytes_;
  std::map<std::string, Entry> entries_;
};

}  // namespace fathom::testing
