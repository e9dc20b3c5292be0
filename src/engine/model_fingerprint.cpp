#include "engine/model_fingerprint.h"

#include <algorithm>

#include "cache/xxh64.h"

namespace fathom {
namespace {

constexpr size_t kSampleBytes = 4096;

/// The value as text, alike on every machine; nothing for lists of texts, which rows of the cache do not depend on.
std::string spell(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return v;
        } else if constexpr (std::is_same_v<T, std::vector<int64_t>> || std::is_same_v<T, std::vector<double>>) {
          std::string text;
          for (const auto x : v) text += std::to_string(x) + ' ';
          return text;
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          return "";
        } else {
          return std::to_string(v);
        }
      },
      value);
}

}  // namespace

std::string model_fingerprint(const Metadata& metadata, const std::map<std::string, Tensor>& tensors) {
  uint64_t hash = 0;
  auto add = [&](const void* data, size_t n) { hash = xxh64(data, n, hash); };
  auto add_text = [&](const std::string& text) { add(text.data(), text.size()); };
  const std::string* found = metadata.text("general.architecture");
  const std::string architecture = found != nullptr ? *found : "unknown";
  for (const auto& [key, value] : metadata.all()) {
    if (key.starts_with(architecture + ".")) add_text(key + '=' + spell(value));
  }
  for (const auto& [name, tensor] : tensors) {
    add_text(name + tensor.describe());
    const size_t size = tensor.size_bytes(), sample = std::min(size, kSampleBytes);
    for (const size_t at : {size_t{0}, (size - sample) / 2, size - sample}) add(tensor.data + at, sample);
  }
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(hash >> shift) & 15];
  return architecture + " " + digits;
}

}  // namespace fathom
