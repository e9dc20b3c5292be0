// JSON as the chat formats need it: read within limits, keys in their order, written the way the models were trained
// on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fathom {

using ChatJson = nlohmann::ordered_json;

/// Deepest nesting that is read or written. Bounds the recursion of anything that walks a value later.
inline constexpr int kMaxJsonDepth = 100;
/// Most members of one object: ordered objects look their keys up one after the other.
inline constexpr int kMaxJsonMembers = 4096;

/// Reads one JSON value that fills `text`. Throws Error{kUsage} "`where`: ..." if it is not JSON, not UTF-8 or beyond
/// the limits. Linear in the text, without recursion.
ChatJson parse_chat_json(std::string_view text, const std::string& where);

/// Writes like Python's json.dumps(value, ensure_ascii=False), which made the training data: ", " and ": " between
/// things. Throws Error{kUsage} beyond kMaxJsonDepth.
void append_chat_json(std::string& out, const ChatJson& value);
std::string to_chat_json(const ChatJson& value);

/// Appends `text` as the inside of a JSON string, without the quotes. `text` is UTF-8 in whole characters.
void append_json_escaped(std::string& out, std::string_view text);

}  // namespace fathom
