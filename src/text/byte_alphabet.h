// GPT-2's printable stand-ins for bytes, in which byte-level BPE vocabularies are written.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom {

/// The bytes that `text` stands for; nothing if a character of it is not in the alphabet or it is not UTF-8.
/// Bytes 21..7E, A1..AC and AE..FF are written as the code point of that value, the other 68 as U+0100, U+0101 ... in
/// increasing order (space is U+0120 "Ġ"). Source: openai/gpt-2, encoder.py, bytes_to_unicode.
std::optional<std::string> from_byte_alphabet(std::string_view text);

}  // namespace fathom
