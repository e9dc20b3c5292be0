// GGUF files put together byte by byte, so that every field can be wrong; and a place to write them.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/gguf.h"

namespace fathom {

/// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fathom-io-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, std::string_view bytes) const {
    const std::string path = *this / name;
    std::filesystem::remove(
        path);  // ext4 flushes a file that is cut and written anew, thousands of times in these tests
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }

 private:
  std::string path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

/// Appends fields in the file's order; nothing is checked.
struct GgufBytes {
  std::string bytes;

  template <typename T> GgufBytes& add(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes.append(raw, sizeof(T));
    return *this;
  }
  GgufBytes& text(std::string_view t) {
    add<uint64_t>(t.size());
    bytes += t;
    return *this;
  }
  GgufBytes& header(uint64_t n_tensors, uint64_t n_keys, uint32_t version = 3) {
    bytes += "GGUF";
    return add(version).add(n_tensors).add(n_keys);
  }
  GgufBytes& key(std::string_view name, GgufValueType type) { return text(name).add(static_cast<uint32_t>(type)); }
  GgufBytes& key_u32(std::string_view name, uint32_t value) { return key(name, GgufValueType::kU32).add(value); }
  GgufBytes& key_text(std::string_view name, std::string_view value) {
    return key(name, GgufValueType::kString).text(value);
  }
  GgufBytes& key_array(std::string_view name, GgufValueType element, uint64_t count) {
    return key(name, GgufValueType::kArray).add(static_cast<uint32_t>(element)).add(count);
  }
  /// `ne` as in the file: fastest dimension first.
  GgufBytes& tensor(std::string_view name, std::initializer_list<uint64_t> ne, uint32_t type, uint64_t offset) {
    text(name).add(static_cast<uint32_t>(ne.size()));
    for (const uint64_t n : ne) add(n);
    return add(type).add(offset);
  }
  GgufBytes& pad(size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  GgufBytes& data(size_t n, char value = 1) {
    bytes.append(n, value);
    return *this;
  }
};

/// Opens what must be refused; returns the message after checking its form.
inline std::string refusal_of(const std::string& path, GgufOptions options = {}) {
  try {
    (void)GgufModel::open(path, options);
  } catch (const Error& error) {
    const std::string message = error.what();
    CAPTURE(message);
    CHECK(error.code() == ErrorCode::kModel);
    CHECK(message.find(std::filesystem::path(path).filename().string()) != std::string::npos);
    CHECK(message.find("; expected ") != std::string::npos);
    CHECK(message.find(", got ") != std::string::npos);
    CHECK(message.find("; try ") != std::string::npos);
    CHECK(std::none_of(message.begin(), message.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }));
    return message;
  }
  FAIL("accepted: " << path);
  return "";
}

inline bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace fathom
