#include "main/display_width.h"

#include <algorithm>

#include "main/display_width_ranges.h"
#include "text/utf8.h"

namespace fathom {
namespace {

bool contains(std::span<const WidthRange> ranges, uint32_t code_point) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                      [](uint32_t c, const WidthRange& range) { return c < range.first; });
  return after != ranges.begin() && code_point <= std::prev(after)->last;
}

constexpr uint32_t kZeroWidthJoiner = 0x200d;

bool is_skin_tone(uint32_t code_point) { return code_point >= 0x1f3fb && code_point <= 0x1f3ff; }

}  // namespace

int display_width(uint32_t code_point) {
  if (code_point < 0x300) return 1;
  if (contains(kZeroWidthRanges, code_point)) return 0;
  return contains(kWideRanges, code_point) ? 2 : 1;
}

size_t character_length(std::string_view text, size_t pos) {
  Utf8Unit unit = read_utf8(text, pos);
  size_t end = pos + unit.length;
  if (unit.state != Utf8Unit::State::kValid || unit.code_point == '\n') return end - pos;
  bool joins = false;
  while (end < text.size()) {
    unit = read_utf8(text, end);
    if (unit.state != Utf8Unit::State::kValid || unit.code_point == '\n') break;
    if (!joins && display_width(unit.code_point) != 0 && !is_skin_tone(unit.code_point)) break;
    joins = unit.code_point == kZeroWidthJoiner;
    end += unit.length;
  }
  return end - pos;
}

size_t character_length_before(std::string_view text, size_t pos) {
  // A character has no bound on its marks: read forward from the line's begin, but no farther back than matters in
  // practice.
  constexpr size_t kLookBack = 256;
  size_t at = pos > kLookBack ? pos - kLookBack : 0;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  size_t last = at;
  while (at < pos) {
    last = at;
    at += character_length(text.substr(0, pos), at);
  }
  return pos - last;
}

int character_width(std::string_view character) {
  int width = 0;
  for (size_t at = 0; at < character.size();) {
    const Utf8Unit unit = read_utf8(character, at);
    width = std::max(width, unit.state == Utf8Unit::State::kValid ? display_width(unit.code_point) : 1);
    at += unit.length;
  }
  return width;
}

}  // namespace fathom
