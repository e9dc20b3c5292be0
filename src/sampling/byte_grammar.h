// Which texts a grammar allows, byte by byte and token by token: a pushdown automaton that is walked over all tokens at
// once.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fathom {

using ByteSet = std::bitset<256>;

/// Rules, each with alternatives, each a row of symbols. Built once, then only read. No rule may reach itself without a
/// byte or token in between (the builders of grammars see to it); right recursion costs no depth.
class ByteGrammar {
 public:
  using RuleId = int32_t;

  struct Symbol {
    enum class Kind : uint8_t {
      kBytes,     ///< one byte of sets[value]
      kRule,      ///< rule `value`
      kToken,     ///< the token with the id `value`, whatever it spells
      kAnything,  ///< from here on nothing is forbidden
    };
    Kind kind;
    int32_t value;
  };
  using Row = std::vector<Symbol>;

  RuleId add_rule();
  void add_alternative(RuleId rule, const Row& row);
  Symbol bytes(const ByteSet& set);
  Symbol byte(char c);
  /// Bytes in [first, last].
  Symbol range(uint8_t first, uint8_t last);
  static Symbol rule(RuleId id) { return {Symbol::Kind::kRule, id}; }
  static Symbol token(int32_t id) { return {Symbol::Kind::kToken, id}; }
  static Symbol anything() { return {Symbol::Kind::kAnything, 0}; }
  /// Appends the bytes of `text`.
  void append_literal(Row& row, std::string_view text);

  /// Symbols of all rows: what a grammar costs in memory.
  size_t size() const { return symbols_.size(); }
  RuleId start = 0;

 private:
  friend class GrammarMatcher;
  std::vector<Symbol> symbols_;              // rows one after the other, each closed by kEnd
  std::vector<std::vector<int32_t>> rules_;  // where the rows of each rule begin
  std::vector<ByteSet> sets_;
  std::unordered_map<uint8_t, int32_t> single_;  // byte -> set
};

/// All tokens that may be text, by their bytes. Immutable.
class TokenTrie {
 public:
  struct Token {
    std::string_view bytes;  ///< must outlive the trie's construction only; not empty
    int32_t id;
  };
  TokenTrie(std::vector<Token> tokens, size_t vocab_size);

  size_t vocab_size() const { return vocab_size_; }

 private:
  friend class GrammarMatcher;
  struct Node {
    int32_t first_child = -1, next_sibling = -1;
    int32_t first_token = 0, n_tokens = 0;  // in token_ids_
    uint8_t byte = 0;
  };
  std::vector<Node> nodes_;  // nodes_[0] is the empty text
  std::vector<int32_t> token_ids_;
  size_t vocab_size_;
};

/// One text in progress. States that come back (inside a string, between items) are worked out once. One thread.
class GrammarMatcher {
 public:
  GrammarMatcher(std::shared_ptr<const ByteGrammar> grammar, std::shared_ptr<const TokenTrie> trie);

  /// The bits of the tokens that may come next; nothing if all may. Valid until the next call of any function.
  std::optional<std::span<const uint64_t>> allowed();
  /// Whether the text may end here.
  bool may_end() const { return states_[static_cast<size_t>(state_)].may_end; }
  /// False if the grammar does not allow it here; then nothing has changed.
  bool accept(int32_t token_id, std::string_view bytes);

 private:
  static constexpr int32_t kNone = -1, kUnknown = -2;

  /// A stack of places in the grammar: the place of the next symbol, and where to go on behind its row.
  struct Frame {
    int32_t place, parent;
    bool operator==(const Frame&) const = default;
  };
  struct FrameHash {
    size_t operator()(const Frame& f) const {
      return static_cast<size_t>(static_cast<uint64_t>(static_cast<uint32_t>(f.place)) * 0x9E3779B97F4A7C15u ^
                                 static_cast<uint64_t>(static_cast<uint32_t>(f.parent)) * 0xC2B2AE3D27D4EB4Fu);
    }
  };
  struct State {
    std::vector<int32_t> frames;  // increasing; the symbol of each is bytes, a token or anything
    bool may_end = false, anything = false;
    std::array<int32_t, 256> next;
    std::vector<uint64_t> mask;  // empty: not worked out yet
  };
  struct VectorHash {
    size_t operator()(const std::vector<int32_t>& v) const;
  };

  int32_t frame(int32_t place, int32_t parent);
  void expand(int32_t place, int32_t parent, std::vector<int32_t>& out, bool& may_end);
  int32_t intern(std::vector<int32_t> frames, bool may_end);
  int32_t step(int32_t state, uint8_t byte);
  int32_t step_token(int32_t state, int32_t token_id);
  void work_out_mask(int32_t state);

  std::shared_ptr<const ByteGrammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  std::vector<Frame> frames_;
  std::unordered_map<Frame, int32_t, FrameHash> frame_ids_;
  std::vector<State> states_;
  std::unordered_map<std::vector<int32_t>, int32_t, VectorHash> state_ids_;
  int32_t state_ = 0;
  size_t n_masks_ = 0;
};

}  // namespace fathom
