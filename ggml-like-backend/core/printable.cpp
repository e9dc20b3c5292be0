#include "core/printable.h"

#include <cstdint>
#include <cstdio>

namespace fathom {
namespace {

struct CodePoint {
  uint32_t value;
  size_t n_bytes;  ///< 0: the byte at hand begins no valid UTF-8 sequence
};

CodePoint decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1};
  const size_t n = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < n) return {0, 0};
  uint32_t value = first & (0xffu >> (n + 1));
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {0, 0};
    value = value << 6 | (byte(i) & 0x3fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kSmallest[n] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return {0, 0};
  return {value, n};
}

// C1 controls, line and paragraph separators, and the marks that reorder what a terminal shows.
bool is_hidden(uint32_t c) {
  return (c >= 0x80 && c < 0xa0) || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

std::string hex(const char* format, uint32_t value) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t i = 0;
  while (i < text.size()) {
    const CodePoint c = decode(text.substr(i, 4));
    std::string piece;
    if (c.n_bytes == 0) {
      piece = hex("\\x%02x", static_cast<unsigned char>(text[i]));
    } else if (c.value == '\n') {
      piece = "\\n";
    } else if (c.value == '\t') {
      piece = "\\t";
    } else if (c.value == '\\') {
      piece = "\\\\";
    } else if (c.value < 0x20 || c.value == 0x7f) {
      piece = hex("\\x%02x", c.value);
    } else if (is_hidden(c.value)) {
      piece = hex("\\u{%04x}", c.value);
    } else {
      piece = text.substr(i, c.n_bytes);
    }
    if (out.size() + piece.size() > max_bytes) return out + "...";
    out += piece;
    i += c.n_bytes == 0 ? 1 : c.n_bytes;
  }
  return out;
}

std::string in_quotes(std::string_view text) {
  std::string out = "'";
  out += printable(text);
  return out += "'";
}

}  // namespace fathom
