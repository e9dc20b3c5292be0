// What a model file says about itself: key -> typed value, with readers that forgive integer widths but not wrong
// kinds.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace fathom {

/// GGUF value types folded to the widest of their kind; arrays likewise (bool arrays as integers 0 and 1).
using MetadataValue = std::variant<int64_t, uint64_t, double, bool, std::string, std::vector<int64_t>,
                                   std::vector<double>, std::vector<std::string>>;

/// Keys in sorted order. Readers return nothing for an absent key and throw Error{kModel} naming key, expected and
/// found kind when the value has another kind. Not thread-safe while being filled; const use from many threads is fine.
class Metadata {
 public:
  void set(std::string key, MetadataValue value) { values_.insert_or_assign(std::move(key), std::move(value)); }
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const MetadataValue* find(std::string_view key) const;

  std::optional<int64_t> integer(std::string_view key) const;  ///< any integer type whose value fits int64
  std::optional<double> number(std::string_view key) const;    ///< integer or float
  std::optional<bool> boolean(std::string_view key) const;
  const std::string* text(std::string_view key) const;
  const std::vector<std::string>* texts(std::string_view key) const;
  const std::vector<int64_t>* integers(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;  ///< array of integers or floats

  const std::map<std::string, MetadataValue, std::less<>>& all() const { return values_; }

 private:
  std::map<std::string, MetadataValue, std::less<>> values_;
};

/// "integer", "text", "array of numbers" ... for messages.
std::string_view kind_of(const MetadataValue& value);

}  // namespace fathom
