#include "text/unicode_classes.h"

#include <vector>

namespace fathom {
namespace {

constexpr uint32_t kCodePoints = 0x110000;

// One byte per code point: 1.1 MB of which a text touches a few pages, cheaper than a search per character.
const uint8_t* class_table() {
  static const std::vector<uint8_t> table = [] {
    std::vector<uint8_t> bits(kCodePoints, 0);
    for (CodePointClass which : {kLetter, kMark, kNumber, kPunctuation, kSymbol, kSpace, kCased}) {
      for (const CodePointRange& range : code_point_ranges(which)) {
        for (uint32_t c = range.first; c <= range.last; ++c) bits[c] |= which;
      }
    }
    return bits;
  }();
  return table.data();
}

}  // namespace

uint8_t code_point_classes(uint32_t code_point) { return code_point < kCodePoints ? class_table()[code_point] : 0; }

}  // namespace fathom
