// Values of a file's metadata under its architecture's prefix, with range checks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/error.h"
#include "core/metadata.h"

namespace fathom::deepseek {

/// Reads "<architecture>.<key>" with a range check.
class Reader {
 public:
  Reader(const Metadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}

  std::optional<int64_t> optional_int(const std::string& key, int64_t low, int64_t high) const {
    const std::optional<int64_t> v = metadata_.integer(prefix_ + key);
    if (v && (*v < low || *v > high)) {
      refuse(key, "expected " + std::to_string(low) + " to " + std::to_string(high) + ", got " + std::to_string(*v));
    }
    return v;
  }
  int64_t required_int(const std::string& key, int64_t low, int64_t high) const {
    const std::optional<int64_t> v = optional_int(key, low, high);
    if (!v) refuse(key, "expected an integer, got no such key");
    return *v;
  }
  int64_t int_or(const std::string& key, int64_t low, int64_t high, int64_t fallback) const {
    return optional_int(key, low, high).value_or(fallback);
  }
  std::optional<double> optional_number(const std::string& key, double low, double high) const {
    const std::optional<double> v = metadata_.number(prefix_ + key);
    if (v && !(*v >= low && *v <= high))
      refuse(key, "expected " + std::to_string(low) + " to " + std::to_string(high) + ", got " + std::to_string(*v));
    return v;
  }
  double number_or(const std::string& key, double low, double high, double fallback) const {
    return optional_number(key, low, high).value_or(fallback);
  }
  std::optional<bool> boolean(const std::string& key) const { return metadata_.boolean(prefix_ + key); }
  const std::string* text(const std::string& key) const { return metadata_.text(prefix_ + key); }

  /// A list, or a single number as a list of one.
  std::optional<std::vector<double>> numbers(const std::string& key) const {
    const MetadataValue* value = metadata_.find(prefix_ + key);
    if (value == nullptr) return std::nullopt;
    const bool is_list =
        std::holds_alternative<std::vector<int64_t>>(*value) || std::holds_alternative<std::vector<double>>(*value);
    if (is_list) return metadata_.numbers(prefix_ + key);
    return std::vector<double>{*metadata_.number(prefix_ + key)};
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    throw Error(ErrorCode::kModel, "model configuration: key '" + prefix_ + key + "' is unusable; " + why +
                                       "; try another copy of the file");
  }

 private:
  const Metadata& metadata_;
  std::string prefix_;
};

// Bounds far above any model: they keep products of two values within int64 and a damaged count from costing memory.
constexpr int64_t kMaxLayers = 1024, kMaxHeads = 65536, kMaxWidth = int64_t{1} << 24, kMaxExperts = 65536,
                  kMaxContext = int64_t{1} << 31;

}  // namespace fathom::deepseek
