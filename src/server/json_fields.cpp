#include "server/json_fields.h"

#include <cmath>

#include "core/error.h"

namespace fathom {

std::string_view kind_of(const ChatJson& value) {
  if (value.is_string()) return "text";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return value.is_number() ? "a number" : value.is_boolean() ? "true or false" : "null";
}

void refuse_field(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::kUsage, path + ": " + what);
}

int64_t read_integer(const ChatJson& value, const std::string& path, int64_t lowest, int64_t highest) {
  const std::string expected =
      "expected a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest) + ", got ";
  if (!value.is_number()) refuse_field(path, "wrong kind; " + expected + std::string(kind_of(value)));
  std::optional<int64_t> number;
  if (value.is_number_unsigned()) {
    const uint64_t wide = value.get<uint64_t>();
    if (wide <= static_cast<uint64_t>(INT64_MAX)) number = static_cast<int64_t>(wide);
  } else if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else {
    const double wide = value.get<double>();
    if (std::abs(wide) <= 9007199254740992.0 && std::trunc(wide) == wide) number = static_cast<int64_t>(wide);  // 2^53
  }
  if (!number || *number < lowest || *number > highest) refuse_field(path, "out of range; " + expected + value.dump());
  return *number;
}

Fields::Fields(const ChatJson& value, std::string where) : value_(&value), where_(std::move(where)) {
  if (!value.is_object())
    refuse_field(where_.empty() ? "body" : where_,
                 "wrong kind; expected an object, got " + std::string(kind_of(value)));
}

std::string Fields::path(std::string_view name) const {
  return (where_.empty() ? "" : where_ + ".") + std::string(name);
}

const ChatJson* Fields::find(std::string_view name) const {
  const auto it = value_->find(name);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

std::optional<bool> Fields::flag(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_boolean())
    refuse_field(path(name), "wrong kind; expected true or false, got " + std::string(kind_of(*value)));
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t lowest, int64_t highest) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  return read_integer(*value, path(name), lowest, highest);
}

std::optional<double> Fields::number(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_number())
    refuse_field(path(name), "wrong kind; expected a number, got " + std::string(kind_of(*value)));
  const double number = value->get<double>();
  if (!std::isfinite(number)) refuse_field(path(name), "out of range; expected a finite number");
  return number;
}

std::optional<std::string> Fields::text(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_string()) refuse_field(path(name), "wrong kind; expected text, got " + std::string(kind_of(*value)));
  return value->get<std::string>();
}

std::string Fields::required_text(std::string_view name) const {
  std::optional<std::string> value = text(name);
  if (!value) refuse_field(path(name), "missing; expected text");
  return *std::move(value);
}

std::optional<Fields> Fields::object(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  return Fields(*value, path(name));
}

const ChatJson* Fields::list(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value != nullptr && !value->is_array())
    refuse_field(path(name), "wrong kind; expected a list, got " + std::string(kind_of(*value)));
  return value;
}

std::vector<std::string> Fields::texts(std::string_view name) const {
  const ChatJson* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array())
    refuse_field(path(name), "wrong kind; expected text or a list of texts, got " + std::string(kind_of(*value)));
  std::vector<std::string> texts;
  for (const ChatJson& item : *value) {
    if (!item.is_string())
      refuse_field(path(name) + "[" + std::to_string(texts.size()) + "]",
                   "wrong kind; expected text, got " + std::string(kind_of(item)));
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

ChatJson parse_body(std::string_view body) {
  if (body.empty()) refuse_field("body", "empty; expected a JSON object");
  if (body.starts_with("\xEF\xBB\xBF"))
    refuse_field("body", "begins with a byte order mark; expected JSON as UTF-8 without one");
  return parse_chat_json(body, "body");
}

std::string dump_json(const ChatJson& value) { return value.dump(-1, ' ', false, ChatJson::error_handler_t::replace); }

}  // namespace fathom
