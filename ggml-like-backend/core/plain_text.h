// Small things done to plain text: ASCII letters and blanks, sizes in words, a hash.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

/// A to Z made small; every other byte as it is.
std::string lower(std::string_view text);

/// Without the blanks at both ends.
std::string_view trimmed(std::string_view text, std::string_view blanks = " \t\r\n");

/// With that many digits behind the point.
std::string fixed(double value, int digits);

/// "1.5 GiB", "310 KiB".
std::string human_bytes(uint64_t bytes);

/// "310 MiB", rounded up.
std::string mib(uint64_t bytes);

/// FNV-1a, 64 bits; `hash`: of what stands before.
uint64_t fnv1a(std::string_view text, uint64_t hash = 0xcbf29ce484222325);

}  // namespace fathom
