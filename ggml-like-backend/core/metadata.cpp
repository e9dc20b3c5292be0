#include "core/metadata.h"

#include <limits>

#include "core/error.h"

namespace fathom {
namespace {

[[noreturn]] void wrong_kind(std::string_view key, std::string_view expected, const MetadataValue& value) {
  throw Error(ErrorCode::kModel, "metadata key '" + std::string(key) + "': wrong kind of value; expected " +
                                     std::string(expected) + ", got " + std::string(kind_of(value)));
}

}  // namespace

std::string_view kind_of(const MetadataValue& value) {
  constexpr std::string_view kNames[] = {"integer", "integer",           "number",           "bool",
                                         "text",    "array of integers", "array of numbers", "array of texts"};
  return kNames[value.index()];
}

const MetadataValue* Metadata::find(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

std::optional<int64_t> Metadata::integer(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* i = std::get_if<int64_t>(v)) return *i;
  if (const auto* u = std::get_if<uint64_t>(v);
      u != nullptr && *u <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return static_cast<int64_t>(*u);
  }
  wrong_kind(key, "an integer", *v);
}

std::optional<double> Metadata::number(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* d = std::get_if<double>(v)) return *d;
  if (const auto* i = std::get_if<int64_t>(v)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(v)) return static_cast<double>(*u);
  wrong_kind(key, "a number", *v);
}

std::optional<bool> Metadata::boolean(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* b = std::get_if<bool>(v)) return *b;
  wrong_kind(key, "a bool", *v);
}

const std::string* Metadata::text(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return nullptr;
  if (const auto* s = std::get_if<std::string>(v)) return s;
  wrong_kind(key, "a text", *v);
}

const std::vector<std::string>* Metadata::texts(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return nullptr;
  if (const auto* s = std::get_if<std::vector<std::string>>(v)) return s;
  wrong_kind(key, "an array of texts", *v);
}

const std::vector<int64_t>* Metadata::integers(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return nullptr;
  if (const auto* a = std::get_if<std::vector<int64_t>>(v)) return a;
  wrong_kind(key, "an array of integers", *v);
}

std::optional<std::vector<double>> Metadata::numbers(std::string_view key) const {
  const MetadataValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* d = std::get_if<std::vector<double>>(v)) return *d;
  if (const auto* i = std::get_if<std::vector<int64_t>>(v)) return std::vector<double>(i->begin(), i->end());
  wrong_kind(key, "an array of numbers", *v);
}

}  // namespace fathom
