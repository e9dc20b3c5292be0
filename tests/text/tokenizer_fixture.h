// The reference tokenizers of tests/fixtures/tokenizers, read once.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/gguf_file.h"
#include "text/bpe.h"

namespace fathom::test {

inline const char* const kTokenizers[] = {"deepseek-llm", "deepseek-coder", "deepseek-v3"};

inline std::string tokenizer_path(const std::string& file) {
  return std::string(FATHOM_FIXTURES) + "/tokenizers/" + file;
}

inline Metadata vocab_metadata(const std::string& name) {
  return read_gguf_file(tokenizer_path(name + "/vocab.gguf"), /*header_only=*/true).metadata;
}

inline const Tokenizer& tokenizer(const std::string& name) {
  static std::map<std::string, Tokenizer> loaded;
  const auto it = loaded.find(name);
  return it != loaded.end() ? it->second : loaded.emplace(name, Tokenizer(vocab_metadata(name))).first->second;
}

inline std::vector<nlohmann::json> json_lines(const std::string& file) {
  std::ifstream in(tokenizer_path(file));
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(in, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

/// FNV-1a, 64 bit, over the ids as little-endian 32-bit integers, as the fixtures write it.
inline std::string fnv1a64(const std::vector<int32_t>& ids) {
  uint64_t hash = 0xCBF29CE484222325;
  for (int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3;
  }
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash));
  return hex;
}

}  // namespace fathom::test
