#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace fathom {
namespace {

constexpr uint32_t kAlphabetEnd = 0x100 + 68;  // one past the last character

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/// The byte that each character stands for; -1: not in the alphabet.
constexpr std::array<int16_t, kAlphabetEnd> make_bytes() {
  std::array<int16_t, kAlphabetEnd> bytes{};
  bytes.fill(-1);
  size_t stand_in = 0x100;
  for (int16_t byte = 0; byte < 256; ++byte)
    bytes[stands_for_itself(static_cast<uint32_t>(byte)) ? static_cast<size_t>(byte) : stand_in++] = byte;
  return bytes;
}

constexpr std::array<int16_t, kAlphabetEnd> kBytes = make_bytes();

}  // namespace

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string bytes;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = read_utf8(text, pos);
    if (unit.code_point >= kAlphabetEnd || kBytes[unit.code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kBytes[unit.code_point]);
    pos += unit.length;
  }
  return bytes;
}

}  // namespace fathom
