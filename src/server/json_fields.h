// Fields of a JSON object, read strictly: the one place where numbers from outside become numbers of the program.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_json.h"

namespace fathom {

/// A view of an object, and the path to it for messages. All readers take null as absent and throw Error{kUsage} naming
/// the field: "stream: wrong kind; expected true or false, got text".
class Fields {
 public:
  /// Throws Error{kUsage} if the value is no object. `value` must outlive the view.
  Fields(const ChatJson& value, std::string where);

  /// Null for a field that is absent or null.
  const ChatJson* find(std::string_view name) const;
  std::optional<bool> flag(std::string_view name) const;
  /// A whole number in [lowest, highest]; 2.0 is one, 2.5, true and "2" are not.
  std::optional<int64_t> integer(std::string_view name, int64_t lowest, int64_t highest) const;
  /// Any finite number.
  std::optional<double> number(std::string_view name) const;
  std::optional<std::string> text(std::string_view name) const;
  std::string required_text(std::string_view name) const;
  std::optional<Fields> object(std::string_view name) const;
  /// A text or a list of texts.
  std::vector<std::string> texts(std::string_view name) const;
  /// Null if absent; throws if it is no list.
  const ChatJson* list(std::string_view name) const;

  std::string path(std::string_view name) const;
  const ChatJson& value() const { return *value_; }

 private:
  const ChatJson* value_;
  std::string where_;
};

/// "text", "a list", "an object", "a number", "true or false", "null"
std::string_view kind_of(const ChatJson& value);

[[noreturn]] void refuse_field(const std::string& path, const std::string& what);

/// Whole numbers as Fields::integer takes them.
int64_t read_integer(const ChatJson& value, const std::string& path, int64_t lowest, int64_t highest);

/// Reads a request's body. Throws Error{kUsage} for an empty one, one that begins with a byte order mark, and what
/// parse_chat_json refuses.
ChatJson parse_body(std::string_view body);

/// JSON on one line. Never throws: bytes that are no UTF-8 become U+FFFD, numbers that are not finite null.
std::string dump_json(const ChatJson& value);

}  // namespace fathom
