#include "text/chat_json.h"

#include <vector>

#include "core/error.h"

namespace fathom {
namespace {

/// Looks at brackets and commas only; whether it is JSON at all is for the parser to say.
void check_limits(std::string_view text, const std::string& where) {
  std::vector<int> commas;  // of each open object; arrays count as -1 and are not limited
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
      continue;
    }
    if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      commas.push_back(c == '{' ? 0 : -1);
      if (commas.size() > kMaxJsonDepth) {
        throw Error{ErrorCode::kUsage,
                    where + ": nested too deep; expected at most " + std::to_string(kMaxJsonDepth) + " levels"};
      }
    } else if ((c == '}' || c == ']') && !commas.empty()) {
      commas.pop_back();
    } else if (c == ',' && !commas.empty() && commas.back() >= 0 && ++commas.back() >= kMaxJsonMembers) {
      throw Error{ErrorCode::kUsage,
                  where + ": too many members in one object; expected at most " + std::to_string(kMaxJsonMembers)};
    }
  }
}

void append_value(std::string& out, const ChatJson& value, int depth) {
  if (depth > kMaxJsonDepth) {
    throw Error{ErrorCode::kUsage,
                "json: nested too deep; expected at most " + std::to_string(kMaxJsonDepth) + " levels"};
  }
  const char* between = "";
  if (value.is_object()) {
    out += '{';
    for (const auto& [key, member] : value.items()) {
      out += between;
      out += '"';
      append_json_escaped(out, key);
      out += "\": ";
      append_value(out, member, depth + 1);
      between = ", ";
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    for (const ChatJson& item : value) {
      out += between;
      append_value(out, item, depth + 1);
      between = ", ";
    }
    out += ']';
  } else if (value.is_string()) {
    out += '"';
    append_json_escaped(out, value.get_ref<const std::string&>());
    out += '"';
  } else {
    out += value.dump();
  }
}

}  // namespace

ChatJson parse_chat_json(std::string_view text, const std::string& where) {
  check_limits(text, where);
  try {
    return ChatJson::parse(text);
  } catch (const nlohmann::json::exception& e) {
    std::string reason = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: .."
    if (const size_t end = reason.find("] "); reason.starts_with("[json.exception.") && end != std::string::npos)
      reason.erase(0, end + 2);
    for (char& c : reason) {
      if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    }
    throw Error{ErrorCode::kUsage, where + ": not JSON; " + reason};
  }
}

void append_chat_json(std::string& out, const ChatJson& value) { append_value(out, value, 1); }

std::string to_chat_json(const ChatJson& value) {
  std::string out;
  append_chat_json(out, value);
  return out;
}

void append_json_escaped(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += kHex[static_cast<unsigned char>(c) >> 4];
          out += kHex[c & 15];
        } else {
          out += c;
        }
    }
  }
}

}  // namespace fathom
