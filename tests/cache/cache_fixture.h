// What the tests of saved sequences share: a small pool, rows that can be recognised, a folder that goes away.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "cache/pages.h"
#include "core/quant/dequantize.h"
#include "core/quant/fp8.h"
#include "core/quant/quantize.h"

namespace fathom::cache_test {

using Tokens = std::vector<int32_t>;

struct TempFolder {
  std::filesystem::path path;
  TempFolder() {
    static std::atomic<int> counter{0};
    path = std::filesystem::temp_directory_path() /
           ("fathom_cache_test_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    std::filesystem::remove_all(path);
    std::filesystem::create_directory(path);
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  size_t n_files() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator()));
  }
};

inline std::vector<char> bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::vector<char>& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline Tokens counting(int64_t n, int32_t first = 0) {
  Tokens tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

inline CacheLayout two_layers(DType dtype = DType::kBF16) {
  return {.n_layers = 2, .row_elements = {96, 32}, .dtype = dtype};
}

/// Element e of the row of (token, position, layer): smooth and within every type's range.
inline float element(int32_t token, int64_t pos, int layer, int64_t e) {
  return static_cast<float>((token * 31 + pos * 7 + layer * 13 + e * 5) % 251 - 125) / 16.0f;
}

inline void encode(DType dtype, const std::vector<float>& row, std::byte* out) {
  if (dtype == DType::kF8_E4M3) {
    for (size_t i = 0; i < row.size(); ++i) out[i] = static_cast<std::byte>(f32_to_f8_e4m3(row[i]));
  } else {
    quantize_row(dtype, row.data(), out, static_cast<int64_t>(row.size()), nullptr);
  }
}

/// Adds the rows of tokens[s.length()..].
inline bool extend(Sequence& s, const Tokens& tokens) {
  const int64_t first = s.length(), n = static_cast<int64_t>(tokens.size()) - first;
  if (!s.reserve(n)) return false;
  const CacheLayout& layout = s.pool().layout();
  const std::vector<int32_t> slots = s.slots(first, n);
  for (int layer = 0; layer < layout.n_layers; ++layer) {
    std::vector<float> row(static_cast<size_t>(layout.row_elements[static_cast<size_t>(layer)]));
    for (int64_t i = 0; i < n; ++i) {
      for (size_t e = 0; e < row.size(); ++e) {
        row[e] = element(tokens[static_cast<size_t>(first + i)], first + i, layer, static_cast<int64_t>(e));
      }
      const int32_t slot = slots[static_cast<size_t>(i)];
      encode(layout.dtype, row,
             s.pool().page_data(layer, slot / kPageTokens) +
                 static_cast<size_t>(slot % kPageTokens) * layout.row_bytes(layer));
    }
  }
  s.advance(n);
  return true;
}

inline const std::byte* row_at(const Sequence& s, int layer, int64_t pos) {
  const int32_t slot = s.slot(pos);
  return s.pool().page_data(layer, slot / kPageTokens) +
         static_cast<size_t>(slot % kPageTokens) * s.pool().layout().row_bytes(layer);
}

/// Whether the first n positions of two sequences of one dtype hold the same bytes.
inline bool same_rows(const Sequence& a, const Sequence& b, int64_t n) {
  for (int layer = 0; layer < a.pool().layout().n_layers; ++layer) {
    for (int64_t pos = 0; pos < n; ++pos) {
      if (std::memcmp(row_at(a, layer, pos), row_at(b, layer, pos), a.pool().layout().row_bytes(layer)) != 0)
        return false;
    }
  }
  return true;
}

inline void check_integrity(const PagePool& pool, std::vector<const Sequence*> live) {
  const auto violation = pool.check_integrity(live);
  CHECK_MESSAGE(!violation.has_value(), violation.value_or(""));
}

}  // namespace fathom::cache_test
