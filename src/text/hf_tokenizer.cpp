#include "text/hf_tokenizer.h"

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/file_io.h"
#include "core/printable.h"
#include "text/unicode_classes.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxTokenId = int64_t{1}
                                << 22;  // bounds the padding a damaged file can ask for; real ones end at 129280
constexpr std::string_view kBosText = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEosText = "<｜end▁of▁sentence｜>";
constexpr std::string_view kPadText = "<｜▁pad▁｜>";

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw Error(ErrorCode::kModel, "tokenizer.json: " + where + ": " + what);
}

const Json& null_json() {
  static const Json null;
  return null;
}

// The member, or null where the object or the member is not there.
const Json& member(const Json& object, const char* name) {
  if (!object.is_object()) return null_json();
  const auto it = object.find(name);
  return it == object.end() ? null_json() : *it;
}

bool is_true(const Json& value) { return value.is_boolean() && value.get<bool>(); }

std::string_view string_or_empty(const Json& value) {
  return value.is_string() ? std::string_view(value.get_ref<const std::string&>()) : std::string_view();
}

int64_t token_id(const Json& value, const std::string& where) {
  if (!value.is_number_integer()) refuse(where, "expected a token id");
  const int64_t id = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)
                         ? -1
                         : value.get<int64_t>();
  if (id < 0 || id > kMaxTokenId)
    refuse(where, "expected a token id from 0 to " + std::to_string(kMaxTokenId) + ", got " + value.dump());
  return id;
}

std::string utf8_of(uint32_t c) {
  std::string text;
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xC0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    text += static_cast<char>(0xE0 | c >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xF0 | c >> 18);
    tail(12), tail(6), tail(0);
  }
  return text;
}

// The steps of each known pre-tokenizer as tokenizer.json spells them: regexes with literal characters, "digits" for
// Digits(individual_digits). ByteLevel at the end is checked apart.
std::vector<std::string> known_steps(PreTokenizer rules) {
  static const std::string kEastAsian = "[一-龥ࠀ-一가-\xED\x9F\xBF]+";
  switch (rules) {
    case PreTokenizer::kDeepSeekLlm: {
      std::string cased = "\\s?[";
      for (const CodePointRange& range : code_point_ranges(kCased)) {
        cased += utf8_of(range.first);
        if (range.last != range.first) cased.append("-").append(utf8_of(range.last));
      }
      return {"[\r\n]", cased + "]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", kEastAsian, "digits"};
    }
    case PreTokenizer::kDeepSeekCoder: return {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", kEastAsian, "digits"};
    case PreTokenizer::kDeepSeekV3:
      return {"\\p{N}{1,3}", "[一-龥\xE3\x81\x80-ゟ゠-ヿ]+",
              "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
              " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"};
  }
  return {};
}

// A regex in the one spelling that is compared: the range of two neighbours, "a-b", as "ab", line ends as themselves
// and not as backslash and letter. Checkpoints differ in that.
std::string in_one_spelling(const std::string& regex) {
  std::string text;
  for (size_t pos = 0; pos < regex.size();) {
    if (regex[pos] == '\\' && pos + 1 < regex.size()) {
      const char escaped = regex[pos + 1];
      pos += 2;
      if (escaped == 'r' || escaped == 'n') {
        text += escaped == 'r' ? '\r' : '\n';
      } else {
        text += {'\\', escaped};
      }
      continue;
    }
    const Utf8Unit first = read_utf8(regex, pos);
    text.append(regex, pos, first.length);
    pos += first.length;
    if (pos + 1 >= regex.size() || regex[pos] != '-') continue;
    const Utf8Unit last = read_utf8(regex, pos + 1);
    if (first.state == Utf8Unit::State::kValid && last.code_point == first.code_point + 1) ++pos;
  }
  return text;
}

// The value of tokenizer.ggml.pre.
std::string recognise_pre_tokenizer(const Json& tokenizer) {
  const Json& steps = member(member(tokenizer, "pre_tokenizer"), "pretokenizers");
  if (!steps.is_array() || steps.empty()) refuse("pre_tokenizer", "expected a Sequence of steps");
  std::vector<std::string> found;
  for (size_t i = 0; i + 1 < steps.size(); ++i) {
    const Json& step = steps[i];
    const std::string where = "pre_tokenizer.pretokenizers[" + std::to_string(i) + "]";
    const std::string_view type = string_or_empty(member(step, "type"));
    if (type == "Digits" && is_true(member(step, "individual_digits"))) {
      found.emplace_back("digits");
    } else if (type == "Split" && string_or_empty(member(step, "behavior")) == "Isolated" &&
               !is_true(member(step, "invert"))) {
      found.push_back(in_one_spelling(std::string(string_or_empty(member(member(step, "pattern"), "Regex")))));
    } else {
      refuse(where, "unsupported step; expected an isolating Split or individual Digits, got " + in_quotes(type));
    }
  }
  const Json& last = steps.back();
  if (string_or_empty(member(last, "type")) != "ByteLevel" || is_true(member(last, "add_prefix_space")) ||
      is_true(member(last, "use_regex"))) {
    refuse("pre_tokenizer.pretokenizers", "expected a ByteLevel step without prefix space and regex at the end");
  }
  for (const auto& [rules, name] : {std::pair(PreTokenizer::kDeepSeekLlm, "deepseek-llm"),
                                    std::pair(PreTokenizer::kDeepSeekCoder, "deepseek-coder"),
                                    std::pair(PreTokenizer::kDeepSeekV3, "deepseek-v3")}) {
    std::vector<std::string> known = known_steps(rules);
    for (std::string& step : known) step = in_one_spelling(step);
    if (found == known) return name;
  }
  refuse("pre_tokenizer", "unknown regexes; expected those of deepseek-llm, deepseek-coder or deepseek-v3, got first " +
                              in_quotes(found.empty() ? "" : found.front()));
}

void check_model(const Json& tokenizer) {
  const Json& model = member(tokenizer, "model");
  if (string_or_empty(member(model, "type")) != "BPE") {
    refuse("model.type", "unsupported; expected \"BPE\", got " + in_quotes(string_or_empty(member(model, "type"))));
  }
  for (const char* flag : {"byte_fallback", "ignore_merges"}) {
    if (is_true(member(model, flag))) refuse(std::string("model.") + flag, "unsupported; expected false, got true");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!string_or_empty(member(model, affix)).empty())
      refuse(std::string("model.") + affix, "unsupported; expected none");
  }
  const Json& normalizer = member(tokenizer, "normalizer");
  const Json& list = member(normalizer, "normalizers");
  if (!normalizer.is_null() && !(list.is_array() && list.empty())) refuse("normalizer", "unsupported; expected none");
}

struct Entry {
  std::string text;
  TokenType type = TokenType::kUnused;
};

bool looks_like_control(std::string_view text) {
  return (text.starts_with("<｜") && text.ends_with("｜>")) || (text.starts_with("<|") && text.ends_with("|>"));
}

// Tokens by id. An added token takes over the entry of the vocabulary with its id.
std::map<int64_t, Entry> read_entries(const Json& tokenizer) {
  const Json& vocab = member(member(tokenizer, "model"), "vocab");
  if (!vocab.is_object()) refuse("model.vocab", "expected an object of token texts and ids");
  std::map<int64_t, Entry> entries;
  for (const auto& [text, id] : vocab.items()) {
    const std::string where = "model.vocab[" + in_quotes(text) + "]";
    if (!entries.try_emplace(token_id(id, where), Entry{text, TokenType::kNormal}).second)
      refuse(where, "id given twice");
  }
  const Json& added = member(tokenizer, "added_tokens");
  if (!added.is_array() && !added.is_null()) refuse("added_tokens", "expected an array");
  for (size_t i = 0; i < added.size(); ++i) {
    const std::string where = "added_tokens[" + std::to_string(i) + "]";
    const std::string text(string_or_empty(member(added[i], "content")));
    if (text.empty()) refuse(where + ".content", "expected the text of the token");
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (is_true(member(added[i], flag))) refuse(where + "." + flag, "unsupported; expected false, got true");
    }
    const bool control = is_true(member(added[i], "special")) || looks_like_control(text);
    entries[token_id(member(added[i], "id"), where + ".id")] = {
        text, control ? TokenType::kControl : TokenType::kUserDefined};
  }
  if (entries.empty()) refuse("model.vocab", "expected tokens, got none");
  return entries;
}

std::vector<std::string> read_merges(const Json& tokenizer) {
  const Json& list = member(member(tokenizer, "model"), "merges");
  if (!list.is_array()) refuse("model.merges", "expected an array");
  std::vector<std::string> merges;
  merges.reserve(list.size());
  for (const Json& merge : list) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    } else {
      refuse("model.merges[" + std::to_string(merges.size()) + "]", "expected \"left right\" or [\"left\", \"right\"]");
    }
  }
  return merges;
}

// A role's token text in tokenizer_config.json, a string or an object with "content"; `fallback` where it is not given.
std::string_view role_text(const Json& config, const char* name, std::string_view fallback) {
  const Json& value = member(config, name);
  const std::string_view text = string_or_empty(value.is_object() ? member(value, "content") : value);
  return text.empty() ? fallback : text;
}

// chat_template: one string, or a list of named ones of which "default" counts.
std::string_view chat_template(const Json& config) {
  const Json& value = member(config, "chat_template");
  if (value.is_array()) {
    for (const Json& named : value) {
      if (string_or_empty(member(named, "name")) == "default") return string_or_empty(member(named, "template"));
    }
  }
  return string_or_empty(value);
}

std::string read_text(const std::filesystem::path& path) {
  std::optional<std::string> text = read_whole(path);
  if (!text)
    throw Error(ErrorCode::kModel,
                path.string() + ": cannot read it; expected a file of the model's folder; try to download it");
  return std::move(*text);
}

Json read_json(const std::filesystem::path& path) {
  Json json = Json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    throw Error(ErrorCode::kModel, path.string() + ": not a JSON object; try downloading it again");
  return json;
}

}  // namespace

Metadata tokenizer_metadata(const Json& tokenizer, const Json& config, std::optional<int64_t> vocab_size) {
  check_model(tokenizer);
  std::map<int64_t, Entry> entries = read_entries(tokenizer);
  const int64_t last = entries.rbegin()->first;
  if (vocab_size && (*vocab_size <= last || *vocab_size > kMaxTokenId)) {
    refuse("model.vocab", "expected ids below the vocab_size " + std::to_string(*vocab_size) + " of config.json, got " +
                              std::to_string(last));
  }

  std::map<std::string_view, int64_t> added;
  std::vector<std::string> texts;
  std::vector<int64_t> types;
  for (int64_t id = 0; id < vocab_size.value_or(last + 1); ++id) {
    const auto it = entries.find(id);
    const Entry entry = it == entries.end() ? Entry{"[PAD" + std::to_string(id) + "]"} : it->second;
    texts.push_back(entry.text);
    types.push_back(static_cast<int64_t>(entry.type));
    if (it != entries.end() && entry.type != TokenType::kNormal) added.emplace(it->second.text, id);
  }

  Metadata metadata;
  metadata.set("tokenizer.ggml.model", std::string("gpt2"));
  metadata.set("tokenizer.ggml.pre", recognise_pre_tokenizer(tokenizer));
  metadata.set("tokenizer.ggml.tokens", std::move(texts));
  metadata.set("tokenizer.ggml.token_type", std::move(types));
  metadata.set("tokenizer.ggml.merges", read_merges(tokenizer));
  const auto set_role = [&](const char* key, std::string_view text) {
    const auto it = added.find(text);
    if (it != added.end()) metadata.set(key, it->second);
    return it != added.end();
  };
  const std::string_view eos = role_text(config, "eos_token", kEosText);
  set_role("tokenizer.ggml.bos_token_id", role_text(config, "bos_token", kBosText));
  set_role("tokenizer.ggml.eos_token_id", eos);
  if (!set_role("tokenizer.ggml.padding_token_id", role_text(config, "pad_token", kPadText))) {
    set_role("tokenizer.ggml.padding_token_id", eos);
  }
  const Json& add_bos = member(config, "add_bos_token");
  metadata.set("tokenizer.ggml.add_bos_token", add_bos.is_boolean() ? add_bos.get<bool>() : true);
  metadata.set("tokenizer.ggml.add_eos_token", false);
  if (const std::string_view text = chat_template(config); !text.empty()) {
    metadata.set("tokenizer.chat_template", std::string(text));
  }
  return metadata;
}

Metadata read_tokenizer_folder(const std::filesystem::path& folder, std::optional<int64_t> vocab_size) {
  const Json tokenizer = read_json(folder / "tokenizer.json");
  const auto config_path = folder / "tokenizer_config.json", template_path = folder / "chat_template.jinja";
  const Json config = std::filesystem::exists(config_path) ? read_json(config_path) : Json();
  Metadata metadata;
  try {
    metadata = tokenizer_metadata(tokenizer, config, vocab_size);
  } catch (const Error& error) {
    throw Error(error.code(), folder.string() + ": " + error.what());
  }
  if (std::filesystem::exists(template_path)) metadata.set("tokenizer.chat_template", read_text(template_path));
  return metadata;
}

}  // namespace fathom
