#include "text/utf8.h"

#include <utility>

namespace fathom {
namespace {

constexpr uint32_t kNoCodePoint = 0xFFFFFFFF;

// Appends what is decided to `text` and returns the number of bytes left over: an unfinished sequence at the end.
size_t append_valid(std::string_view bytes, std::string& text) {
  for (size_t pos = 0; pos < bytes.size();) {
    const Utf8Unit unit = read_utf8(bytes, pos);
    if (unit.state == Utf8Unit::State::kUnfinished) return bytes.size() - pos;
    text += unit.state == Utf8Unit::State::kValid ? bytes.substr(pos, unit.length) : kReplacementCharacter;
    pos += unit.length;
  }
  return 0;
}

// ED A0 to ED BF, the first two bytes of a surrogate: wrong already, but the stream of reference waits for the third.
bool begins_surrogate_at_end(std::string_view bytes) {
  return bytes.size() >= 2 && bytes[bytes.size() - 2] == '\xED' && static_cast<uint8_t>(bytes.back()) >= 0xA0 &&
         static_cast<uint8_t>(bytes.back()) <= 0xBF;
}

}  // namespace

Utf8Unit read_utf8(std::string_view bytes, size_t pos) {
  using State = Utf8Unit::State;
  const auto lead = static_cast<uint8_t>(bytes[pos]);
  if (lead < 0x80) return {lead, 1, State::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {kNoCodePoint, 1, State::kInvalid};

  const uint32_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte alone tells overlong forms (E0, F0), surrogates (ED) and values above 0x10FFFF (F4).
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  uint32_t code_point = lead & (0x7F >> length);
  for (uint32_t i = 1; i < length; ++i) {
    if (pos + i >= bytes.size()) return {kNoCodePoint, i, State::kUnfinished};
    const auto byte = static_cast<uint8_t>(bytes[pos + i]);
    if (byte < low || byte > high) return {kNoCodePoint, i, State::kInvalid};
    code_point = code_point << 6 | (byte & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, length, State::kValid};
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  if (append_valid(bytes, text) > 0) text += kReplacementCharacter;
  return text;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  const size_t held_back = begins_surrogate_at_end(held_) ? 2 : 0;
  std::string text;
  const size_t unfinished = append_valid(std::string_view(held_).substr(0, held_.size() - held_back), text);
  held_.erase(0, held_.size() - held_back - unfinished);
  return text;
}

std::string Utf8Stream::flush() { return to_valid_utf8(std::exchange(held_, {})); }

}  // namespace fathom
