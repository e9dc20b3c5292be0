#include "io/gguf_checks.h"

#include <initializer_list>
#include <optional>
#include <string>

#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

constexpr int64_t kMaxLayers = 512;     // V3 has 61 + 1
constexpr int64_t kMaxHeads = 65536;    // V3 has 128
constexpr int64_t kMaxExperts = 65536;  // V4 has 384

[[noreturn]] void fail(const GgufFile& gguf, const std::string& key, const std::string& what,
                       const std::string& expected, const std::string& got) {
  const auto stored = gguf.stored_types.find(key);
  const std::string at =
      stored == gguf.stored_types.end() ? "" : " (byte offset " + std::to_string(stored->second.at) + ")";
  throw Error(ErrorCode::kModel, printable(gguf.file->path(), 400) + ": key '" + printable(key) + "' " + what + at +
                                     "; expected " + expected + ", got " + got +
                                     "; try to download or convert the file again");
}

// Scalar integer under `key`; nothing if it is absent or an array (one value per layer). Unsigned values above 2^63 are
// refused.
std::optional<int64_t> scalar(const GgufFile& gguf, const std::string& key) {
  const MetadataValue* value = gguf.metadata.find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* i = std::get_if<int64_t>(value)) return *i;
  if (const auto* u = std::get_if<uint64_t>(value)) {
    if (*u > static_cast<uint64_t>(INT64_MAX)) fail(gguf, key, "is too large", "less than 2^63", std::to_string(*u));
    return static_cast<int64_t>(*u);
  }
  if (std::holds_alternative<std::vector<int64_t>>(*value)) return std::nullopt;
  fail(gguf, key, "has the wrong type", "an integer", gguf.stored_types.at(key).text());
}

void check_range(const GgufFile& gguf, const std::string& key, int64_t least, int64_t most) {
  const std::optional<int64_t> value = scalar(gguf, key);
  if (value && (*value < least || *value > most)) {
    fail(gguf, key, "is out of range", std::to_string(least) + " to " + std::to_string(most), std::to_string(*value));
  }
}

void check_counts(const GgufFile& gguf, const std::string& architecture) {
  check_range(gguf, architecture + ".block_count", 1, kMaxLayers);
  if (!architecture.starts_with("deepseek"))
    return;  // others may give these keys another meaning; they can be inspected
  check_range(gguf, architecture + ".embedding_length", 1, int64_t{1} << 24);
  check_range(gguf, architecture + ".context_length", 1, int64_t{1} << 40);
  check_range(gguf, architecture + ".attention.head_count", 1, kMaxHeads);
  check_range(gguf, architecture + ".attention.head_count_kv", 1, kMaxHeads);
  check_range(gguf, architecture + ".expert_count", 1, kMaxExperts);
  const std::string used_key = architecture + ".expert_used_count";
  check_range(gguf, used_key, 1, kMaxExperts);
  const auto n_experts = scalar(gguf, architecture + ".expert_count");
  const auto n_used = scalar(gguf, used_key);
  if (n_experts && n_used && *n_used > *n_experts) {
    fail(gguf, used_key, "exceeds the number of experts", "at most " + std::to_string(*n_experts) + " (expert_count)",
         std::to_string(*n_used));
  }
}

// Readers index these arrays by token id: a narrower or other element type is another meaning, not another width.
void check_array_type(const GgufFile& gguf, const std::string& key, std::initializer_list<GgufValueType> allowed) {
  const auto stored = gguf.stored_types.find(key);
  if (stored == gguf.stored_types.end()) return;
  std::string expected = "array of";
  for (const GgufValueType type : allowed) {
    if (stored->second.type == GgufValueType::kArray && stored->second.element == type) return;
    expected += (expected.back() == 'f' ? " " : " or ") + std::string(gguf_value_type_name(type));
  }
  fail(gguf, key, "has the wrong type", expected, stored->second.text());
}

void check_length(const GgufFile& gguf, const std::string& key, size_t length, size_t n_tokens) {
  if (length != n_tokens) {
    fail(gguf, key, "has another length than the vocabulary", std::to_string(n_tokens) + " elements",
         std::to_string(length));
  }
}

void check_vocabulary(const GgufFile& gguf) {
  using enum GgufValueType;
  const std::string prefix = "tokenizer.ggml.";
  check_array_type(gguf, prefix + "tokens", {kString});
  check_array_type(gguf, prefix + "merges", {kString});
  check_array_type(gguf, prefix + "token_type", {kI32, kU32, kI64, kU64});
  check_array_type(gguf, prefix + "scores", {kF32, kF64});
  const std::vector<std::string>* tokens = gguf.metadata.texts(prefix + "tokens");
  if (tokens == nullptr) return;
  const size_t n_tokens = tokens->size();
  if (const auto* types = gguf.metadata.integers(prefix + "token_type"))
    check_length(gguf, prefix + "token_type", types->size(), n_tokens);
  if (const auto scores = gguf.metadata.numbers(prefix + "scores"))
    check_length(gguf, prefix + "scores", scores->size(), n_tokens);
  for (const auto& [key, stored] : gguf.stored_types) {
    if (!key.starts_with(prefix) || !key.ends_with("_token_id") || stored.type == kArray) continue;
    const std::optional<int64_t> id = scalar(gguf, key);
    if (id && (*id < 0 || static_cast<uint64_t>(*id) >= n_tokens)) {
      fail(gguf, key, "is not an id of the vocabulary", "0 to " + std::to_string(static_cast<int64_t>(n_tokens) - 1),
           std::to_string(*id));
    }
  }
}

}  // namespace

void check_model_metadata(const GgufFile& gguf) {
  if (const MetadataValue* value = gguf.metadata.find("general.architecture")) {
    const auto* architecture = std::get_if<std::string>(value);
    if (architecture == nullptr)
      fail(gguf, "general.architecture", "has the wrong type", "string",
           gguf.stored_types.at("general.architecture").text());
    check_counts(gguf, *architecture);
  }
  check_vocabulary(gguf);
}

}  // namespace fathom
