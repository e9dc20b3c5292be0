// Reading UTF-8 that may be wrong or unfinished.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Unit {
  enum class State { kValid, kInvalid, kUnfinished };

  uint32_t code_point;  ///< 0xFFFFFFFF unless valid: above every code point, in no class
  uint32_t length;      ///< bytes, >= 1; if not valid, the longest prefix that some valid sequence begins with
  State state;
};

/// The unit that begins at `bytes[pos]`; pos < bytes.size(). kUnfinished means that the bytes end inside a sequence
/// that is right so far. Overlong forms, surrogates and values above 0x10FFFF are invalid. Source: Unicode 16.0, table
/// 3-7 and D93b.
Utf8Unit read_utf8(std::string_view bytes, size_t pos);

/// `bytes` with every invalid or unfinished unit replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

/// Turns a stream of bytes cut anywhere into valid UTF-8: an unfinished sequence is held back until it is finished or
/// known to be wrong; wrong ones become U+FFFD. Encoded surrogates are held back until their third byte. All pushes and
/// the final flush together give to_valid_utf8 of all bytes. Reference: Python's incremental UTF-8 decoder with
/// errors="replace".
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string flush();  ///< what was held back, as U+FFFD; the stream can be used again

 private:
  std::string held_;  // at most three bytes
};

}  // namespace fathom
