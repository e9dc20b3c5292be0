#include "text/vocab.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "core/error.h"
#include "core/printable.h"
#include "text/byte_alphabet.h"

namespace fathom {
namespace {

// Far above any real vocabulary. The bound on added tokens keeps matching them linear in the text, whatever the file
// says.
constexpr size_t kMaxTokens = size_t{1} << 24;
constexpr size_t kMaxTokenBytes = size_t{1} << 20;
constexpr size_t kMaxAddedTokenBytes = 1024;
constexpr size_t kMaxVocabBytes = std::numeric_limits<int32_t>::max();

constexpr std::string_view kBosText = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEosText = "<｜end▁of▁sentence｜>";
constexpr std::string_view kEotText = "<|EOT|>";

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw Error(ErrorCode::kModel, where + ": " + what);
}

std::string entry(std::string_view key, size_t index) { return std::string(key) + "[" + std::to_string(index) + "]"; }

template <typename T> const T& required(const T* value, std::string_view key) {
  if (value == nullptr) refuse(std::string(key), "missing; expected the tokenizer of the model; try another file");
  return *value;
}

// Byte tokens are spelled "<0xHH>".
char parse_byte_token(const std::string& text, const std::string& where) {
  const auto nibble = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  if (text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && nibble(text[3]) >= 0 && nibble(text[4]) >= 0) {
    return static_cast<char>(nibble(text[3]) * 16 + nibble(text[4]));
  }
  refuse(where, "malformed byte token; expected <0x00> to <0xFF>, got " + in_quotes(text));
}

bool is_added(TokenType type) { return type == TokenType::kControl || type == TokenType::kUserDefined; }

bool occurs_in_utf8(int byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

// Literally for added tokens, and for anything else that is not written in the byte alphabet: some files list added
// tokens as normal ones.
std::string decoded(const std::string& text, TokenType type, const std::string& where) {
  if (type == TokenType::kByte) return std::string(1, parse_byte_token(text, where));
  if (type != TokenType::kNormal) return text;
  return from_byte_alphabet(text).value_or(text);
}

}  // namespace

Vocab::Vocab(const Metadata& metadata) {
  const std::string& model = required(metadata.text("tokenizer.ggml.model"), "tokenizer.ggml.model");
  if (model != "gpt2") {
    refuse("tokenizer.ggml.model",
           "unsupported tokenizer; expected \"gpt2\" (byte-level BPE), got " + in_quotes(model));
  }
  pre_tokenizer_ = pre_tokenizer_from_name(required(metadata.text("tokenizer.ggml.pre"), "tokenizer.ggml.pre"));
  read_tokens(metadata);
  read_merges(metadata);
  read_roles(metadata);
}

void Vocab::read_tokens(const Metadata& metadata) {
  constexpr std::string_view kTokens = "tokenizer.ggml.tokens", kTypes = "tokenizer.ggml.token_type";
  texts_ = required(metadata.texts(kTokens), kTokens);
  const std::vector<int64_t>& types = required(metadata.integers(kTypes), kTypes);
  if (texts_.empty() || texts_.size() > kMaxTokens) {
    refuse(std::string(kTokens),
           "expected 1 to " + std::to_string(kMaxTokens) + " tokens, got " + std::to_string(texts_.size()));
  }
  if (types.size() != texts_.size()) {
    refuse(std::string(kTypes),
           "expected one type per token, " + std::to_string(texts_.size()) + ", got " + std::to_string(types.size()));
  }
  constexpr std::string_view kScores = "tokenizer.ggml.scores";  // unused by this kind of tokenizer
  if (const auto scores = metadata.numbers(kScores); scores && scores->size() != texts_.size()) {
    refuse(std::string(kScores), "expected one score per token, " + std::to_string(texts_.size()) + ", got " +
                                     std::to_string(scores->size()));
  }

  byte_tokens_.fill(-1);
  offsets_.reserve(texts_.size() + 1);
  offsets_.push_back(0);
  for (size_t i = 0; i < texts_.size(); ++i) {
    if (types[i] < 1 || types[i] > 6)
      refuse(entry(kTypes, i), "expected a token type from 1 to 6, got " + std::to_string(types[i]));
    const auto type = static_cast<TokenType>(types[i]);
    types_.push_back(type);
    const std::string& text = texts_[i];
    const size_t limit = is_added(type) ? kMaxAddedTokenBytes : kMaxTokenBytes;
    if (text.size() > limit || bytes_.size() + text.size() > kMaxVocabBytes) {
      refuse(entry(kTokens, i),
             "expected a token of at most " + std::to_string(limit) + " bytes, got " + std::to_string(text.size()));
    }
    if (is_added(type)) {
      if (text.empty()) refuse(entry(kTokens, i), "empty control or user-defined token; expected some text");
      added_.push_back({text, static_cast<int32_t>(i)});
    }
    const std::string bytes = decoded(text, type, entry(kTokens, i));
    if (bytes.size() == 1) {
      int32_t& token = byte_tokens_[static_cast<uint8_t>(bytes[0])];
      if (token < 0) token = static_cast<int32_t>(i);
    }
    bytes_ += bytes;
    offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (byte_tokens_[byte] < 0 && occurs_in_utf8(byte)) {
      refuse(std::string(kTokens),
             "no token for byte " + std::to_string(byte) + "; expected one for every byte that UTF-8 uses");
    }
  }
  // The first of several tokens with the same text is the one that text encodes to.
  std::stable_sort(added_.begin(), added_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  added_.erase(std::unique(added_.begin(), added_.end(),
                           [](const AddedToken& a, const AddedToken& b) { return a.text == b.text; }),
               added_.end());
}

void Vocab::read_merges(const Metadata& metadata) {
  constexpr std::string_view kMerges = "tokenizer.ggml.merges";
  const std::vector<std::string>& lines = required(metadata.texts(kMerges), kMerges);
  if (lines.size() > kMaxTokens) {
    refuse(std::string(kMerges),
           "expected at most " + std::to_string(kMaxTokens) + " merges, got " + std::to_string(lines.size()));
  }
  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(texts_.size());
  for (bool added : {false, true}) {  // an added token stands back behind an ordinary one with the same text
    for (int32_t i = 0; i < size(); ++i) {
      if (is_added(types_[i]) == added) ids.emplace(texts_[i], i);
    }
  }
  merges_.reserve(lines.size());
  for (size_t rank = 0; rank < lines.size(); ++rank) {
    const std::string_view line = lines[rank];
    const size_t space = line.find(' ');
    if (space == line.npos || line.find(' ', space + 1) != line.npos) {
      refuse(entry(kMerges, rank), "expected two tokens with a space between them, got " + in_quotes(line));
    }
    const std::string_view left = line.substr(0, space), right = line.substr(space + 1);
    const auto find = [&](std::string_view text) {
      const auto it = ids.find(text);
      if (it == ids.end()) refuse(entry(kMerges, rank), "expected tokens of the vocabulary, got " + in_quotes(text));
      return it->second;
    };
    merges_.push_back({find(left), find(right), find(std::string(left) + std::string(right))});
  }
}

void Vocab::read_roles(const Metadata& metadata) {
  const auto role = [&](const std::string& name, std::string_view fallback) -> std::optional<int32_t> {
    const std::string key = "tokenizer.ggml." + name + "_token_id";
    const auto id = metadata.integer(key);
    if (!id) return fallback.empty() ? std::nullopt : find(fallback);
    if (*id < 0 || *id >= size()) {
      refuse(key,
             "expected an id of the vocabulary, 0 to " + std::to_string(size() - 1) + ", got " + std::to_string(*id));
    }
    return static_cast<int32_t>(*id);
  };
  const auto bos = role("bos", kBosText), eos = role("eos", kEosText);
  if (!bos) refuse("tokenizer.ggml.bos_token_id", "missing, and no token is spelled " + std::string(kBosText));
  if (!eos) refuse("tokenizer.ggml.eos_token_id", "missing, and no token is spelled " + std::string(kEosText));
  bos_ = *bos;
  eos_ = *eos;
  pad_ = role("padding", "");
  for (const char* name : {"unknown", "fim_pre", "fim_suf", "fim_mid", "eom"}) role(name, "");  // checked, not used
  add_bos_ = metadata.boolean("tokenizer.ggml.add_bos_token").value_or(true);

  end_ids_ = {eos_};
  for (const auto& end : {role("eot", ""), find(kEosText), find(kEotText)}) {
    if (end) end_ids_.push_back(*end);
  }
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
}

size_t Vocab::checked(int32_t token_id) const {
  if (token_id < 0 || token_id >= size()) {
    throw Error(ErrorCode::kUsage,
                "token id: expected 0 to " + std::to_string(size() - 1) + ", got " + std::to_string(token_id));
  }
  return static_cast<size_t>(token_id);
}

const std::string& Vocab::text(int32_t token_id) const { return texts_[checked(token_id)]; }

std::string_view Vocab::bytes(int32_t token_id) const {
  const size_t i = checked(token_id);
  return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

TokenType Vocab::type(int32_t token_id) const { return types_[checked(token_id)]; }

bool Vocab::is_end(int32_t token_id) const { return std::binary_search(end_ids_.begin(), end_ids_.end(), token_id); }

std::optional<int32_t> Vocab::find(std::string_view added_text) const {
  const auto it = std::lower_bound(added_.begin(), added_.end(), added_text,
                                   [](const AddedToken& token, std::string_view text) { return token.text < text; });
  return it != added_.end() && it->text == added_text ? std::optional(it->token_id) : std::nullopt;
}

std::optional<int32_t> Vocab::byte_token(uint8_t byte) const {
  return byte_tokens_[byte] < 0 ? std::nullopt : std::optional(byte_tokens_[byte]);
}

}  // namespace fathom
