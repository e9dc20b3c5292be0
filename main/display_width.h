// How many columns of a terminal a text takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fathom {

/// Columns of a code point: 0 for marks that join the one before, 2 for wide East Asian characters and emoji, else 1.
/// Independent of the locale. Ambiguous characters count 1.
int display_width(uint32_t code_point);

/// Bytes of the character that begins at `text[pos]`, the marks that join it included. Invalid bytes are characters of
/// their own.
size_t character_length(std::string_view text, size_t pos);
/// Bytes of the character that ends at `text[pos]`, pos > 0.
size_t character_length_before(std::string_view text, size_t pos);
/// Columns of the character `text` begins with: its widest code point.
int character_width(std::string_view character);

}  // namespace fathom
