// The tokens of a model: their bytes, kinds and special roles, and the merges between them. Read from untrusted
// metadata.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/metadata.h"
#include "text/pretokenize.h"

namespace fathom {

/// GGUF's token types.
enum class TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

/// Two tokens that become one. A merge's rank is its place in the list: lower ranks go first.
struct Merge {
  int32_t left, right, result;
};

/// A token that is matched as literal text before any splitting: types kControl and kUserDefined.
struct AddedToken {
  std::string text;
  int32_t token_id;
};

/// Immutable; safe to use from many threads. Functions that take a token id throw Error{kUsage} if it is not in the
/// vocabulary.
class Vocab {
 public:
  /// Reads tokenizer.ggml.{model, pre, tokens, token_type, merges, *_token_id, add_bos_token}. Throws Error{kModel}
  /// naming the key and entry for whatever does not fit together: another model than "gpt2", lengths that differ, ids
  /// beyond the vocabulary, merges of missing tokens, a byte of UTF-8 without a token, malformed byte tokens.
  explicit Vocab(const Metadata& metadata);

  int32_t size() const { return static_cast<int32_t>(texts_.size()); }
  PreTokenizer pre_tokenizer() const { return pre_tokenizer_; }

  /// The token as the file spells it: in GPT-2's byte alphabet for normal tokens, literally for added ones.
  const std::string& text(int32_t token_id) const;
  /// What the token stands for in decoded text; not always valid UTF-8 by itself.
  std::string_view bytes(int32_t token_id) const;
  TokenType type(int32_t token_id) const;

  int32_t bos() const { return bos_; }
  int32_t eos() const { return eos_; }
  std::optional<int32_t> pad() const { return pad_; }
  /// Whether the file asks for a BOS in front of a prompt (true where it does not say).
  bool add_bos() const { return add_bos_; }
  /// Whether generation ends at this token: the eos and eot ids, `<｜end▁of▁sentence｜>`, `<|EOT|>`. False for unknown
  /// ids.
  bool is_end(int32_t token_id) const;
  const std::vector<int32_t>& end_ids() const { return end_ids_; }  ///< increasing

  /// The added token spelled exactly so, as "<think>"; nothing if the vocabulary has none.
  std::optional<int32_t> find(std::string_view added_text) const;
  const std::vector<AddedToken>& added_tokens() const { return added_; }  ///< by text, in byte order

  /// The token of a single byte. Some vocabularies have none for the 13 bytes that UTF-8 never uses (C0, C1, F5..FF).
  std::optional<int32_t> byte_token(uint8_t byte) const;
  const std::vector<Merge>& merges() const { return merges_; }  ///< by rank

 private:
  void read_tokens(const Metadata& metadata);
  void read_merges(const Metadata& metadata);
  void read_roles(const Metadata& metadata);
  size_t checked(int32_t token_id) const;

  PreTokenizer pre_tokenizer_{};
  std::vector<std::string> texts_;
  std::vector<TokenType> types_;
  std::string bytes_;              // of all tokens
  std::vector<uint32_t> offsets_;  // token i is bytes_[offsets_[i] .. offsets_[i + 1])
  std::vector<AddedToken> added_;
  std::array<int32_t, 256> byte_tokens_{};  // -1: none
  std::vector<Merge> merges_;
  int32_t bos_ = 0, eos_ = 0;
  std::optional<int32_t> pad_;
  bool add_bos_ = true;
  std::vector<int32_t> end_ids_;
};

}  // namespace fathom
