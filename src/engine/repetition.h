// Guesses from the text itself: what followed the last few tokens when they stood there before. Costs nothing to make,
// and is right where an answer repeats its prompt (summaries, edits of code, quotes). Known as prompt lookup.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

namespace fathom {

/// The last place of every three tokens in a growing text.
class RepetitionIndex {
 public:
  /// Tokens that have to be equal before a place counts as a repetition.
  static constexpr size_t kLeastMatch = 3;
  /// A longer match is not told from this one.
  static constexpr size_t kMostMatch = 16;

  struct Found {
    std::span<const int32_t> tokens;  ///< what followed; empty: no repetition
    size_t match = 0;                 ///< tokens before the two places that are equal, at most kMostMatch
  };

  /// What may follow `text`, at most `most` tokens. `text` must begin with what was given before; the result views it.
  Found find(std::span<const int32_t> text, size_t most);

 private:
  std::unordered_map<uint64_t, size_t>
      ends_;              // hash of three tokens -> index after their last place but the text's end
  size_t n_indexed_ = 0;  // tokens whose places are in ends_
};

}  // namespace fathom
