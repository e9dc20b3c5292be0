// Which of the classes that pre-tokenizers ask for a code point belongs to. Unicode 16.0.
#pragma once

#include <cstdint>
#include <span>

namespace fathom {

/// Bits. The general categories (\p{L} ... \p{S}) exclude each other; kSpace is what `\s` matches; kCased is the letter
/// list that the deepseek-llm pre-tokenizer spells out, a subset of kLetter.
enum CodePointClass : uint8_t {
  kLetter = 1,
  kMark = 2,
  kNumber = 4,
  kPunctuation = 8,
  kSymbol = 16,
  kSpace = 32,
  kCased = 64,
};

/// The bits of a code point; 0 for code points in no class, unassigned ones and values above 0x10FFFF. Constant time.
uint8_t code_point_classes(uint32_t code_point);

struct CodePointRange {
  uint32_t first, last;  ///< inclusive
};

/// The ranges of one class in increasing order.
std::span<const CodePointRange> code_point_ranges(CodePointClass which);

}  // namespace fathom
