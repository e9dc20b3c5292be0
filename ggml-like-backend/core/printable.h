// Text from a file made safe for one line of a message or a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace fathom {

/// `text` with control characters, invalid UTF-8 and backslashes written as \n, \t, \\ or \xNN,
/// C1 controls, line separators and direction overrides as \u{NNNN}. Longer than max_bytes: cut at a character border
/// and
/// "..." appended.
std::string printable(std::string_view text, size_t max_bytes = 120);

/// The same between single quotes.
std::string in_quotes(std::string_view text);

}  // namespace fathom
