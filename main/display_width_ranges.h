// Code points that take no column or two; increasing, both ends included.
#pragma once

#include <cstdint>
#include <span>

namespace fathom {

struct WidthRange {
  uint32_t first, last;
};

extern const std::span<const WidthRange> kZeroWidthRanges;
extern const std::span<const WidthRange> kWideRanges;

}  // namespace fathom
