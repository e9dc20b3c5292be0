// Text to token ids and back: byte-level BPE over a Vocab. Start here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/metadata.h"
#include "text/prompt_part.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace fathom {

/// Whether control tokens (`<｜User｜>` and the like, not `<think>`) are part of decoded text.
enum class ControlTokens { kShow, kHide };

/// Merge ranks of pairs of tokens: an open-addressing table that is built once and only read.
class MergeTable {
 public:
  struct Entry {
    uint32_t rank;
    int32_t result;
  };

  explicit MergeTable(const std::vector<Merge>& merges);
  /// Nullptr if the pair does not merge. The lowest rank counts if a pair is listed twice.
  const Entry* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = UINT64_MAX;
    Entry entry{};
  };
  std::vector<Slot> slots_;  // a power of two, at most half full
};

/// Immutable; every function is safe to call from many threads. No function adds BOS or EOS.
class Tokenizer {
 public:
  explicit Tokenizer(Vocab vocab) : vocab_(std::move(vocab)), table_(vocab_.merges()) {}
  explicit Tokenizer(const Metadata& metadata) : Tokenizer(Vocab(metadata)) {}

  const Vocab& vocab() const { return vocab_; }

  /// Ids of `text`. With match_special, added tokens spelled in it become their ids (leftmost, then longest); without,
  /// nothing does: for text from users and tools. `text` may hold any bytes. Those that are not UTF-8 are encoded as
  /// they are, so that decode() gives them back; only a byte that the vocabulary has no token for (Vocab::byte_token)
  /// is encoded as U+FFFD. Time is O(n log n) in the worst case. Throws Error{kUsage} above 2^31 - 1 bytes.
  std::vector<int32_t> encode(std::string_view text, bool match_special) const;

  /// Ids of a text that is measured, not obeyed: markers such as `<think>` become their ids, control tokens spelled in
  /// it do not. This is how llama.cpp reads texts, so that figures can be compared.
  std::vector<int32_t> encode_document(std::string_view text) const;

  /// Ids of the parts' concatenation, added tokens matched only inside `special` parts. Pieces of text do not end where
  /// a part ends: "a" + "b" encodes as "ab".
  std::vector<int32_t> encode(std::span<const PromptPart> parts) const;

  /// The bytes of the tokens in order; encode() and then decode() with kShow is the identity. Cut sequences are
  /// possible: use to_valid_utf8 or TokenStream for text. Throws Error{kUsage} for ids outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, ControlTokens control = ControlTokens::kShow) const;

 private:
  struct Segments;
  static void append_part(std::string_view text, const std::vector<AddedToken>& matched, Segments& segments);
  std::vector<int32_t> encode_segments(const Segments& segments) const;

  Vocab vocab_;
  MergeTable table_;
};

/// Decodes tokens as they come, as valid UTF-8 (see Utf8Stream). Keeps a reference to the tokenizer.
class TokenStream {
 public:
  explicit TokenStream(const Tokenizer& tokenizer, ControlTokens control = ControlTokens::kHide)
      : tokenizer_(tokenizer), control_(control) {}

  /// The text that is certain after this token; empty while a character is unfinished. A hidden control token adds
  /// nothing.
  std::string push(int32_t token_id);
  /// What is left at the end of the stream: nothing, or U+FFFD for an unfinished character.
  std::string finish() { return utf8_.flush(); }

 private:
  const Tokenizer& tokenizer_;
  ControlTokens control_;
  Utf8Stream utf8_;
};

}  // namespace fathom
