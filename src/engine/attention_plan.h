// Which form of latent attention evaluates which token of a prompt, so that a token's bits never depend on company.
//
// The two forms differ in the last bits. Within a form every kernel computes a token's row alike whatever is evaluated
// beside it and wherever a chunk begins. So the form has to be a function of the request alone:
//
//   position   0 ................. from_position ............. E ......... n ...... end of the answer
//              absorbed            expanded                    absorbed    absorbed (one token at a time)
//
// with E = n rounded down to blocks. Absorbed below from_position although long chunks would be cheaper expanded: there
// attention is the small part of the work, and the answers of a chat become prompt again; as they were decoded
// absorbed, they are found in the cache with the bits that a fresh evaluation would give. Above it, a row is used again
// only where both prompts want it in the same form; less than a block and the answer are then evaluated anew.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/node.h"

namespace fathom {

/// Queries for each key from which expanding is cheaper: C (N + V) / ((2C + R) - (N + R + V)) = 171 for DeepSeek's
/// sizes.
constexpr int64_t kExpandedPays = 171;

struct ExpandThresholds {
  /// Absorbed attention over 4096 rows costs V2-Lite 3.9 GFLOP a token (27 layers * 16 heads * 2176 FLOP a row)
  /// beside 4.8 of its weights, V3 70 beside 74: from here on half the time and more.
  int64_t from_position = 4096;
  int64_t block_tokens = 256;  ///< above kExpandedPays
};

class AttentionPlan {
 public:
  AttentionPlan() = default;  ///< one form throughout
  AttentionPlan(int64_t n_prompt, const ExpandThresholds& t)
      : from_(t.from_position), end_(std::max(from_, n_prompt / t.block_tokens * t.block_tokens)) {}

  bool expanded(int64_t pos) const { return pos >= from_ && pos < end_; }
  AttentionForm form(int64_t pos) const { return expanded(pos) ? AttentionForm::kExpanded : AttentionForm::kAbsorbed; }

  /// The most of positions [first, first + n) that begin with `first` and have its form.
  int64_t of_one_form(int64_t first, int64_t n) const {
    if (first < from_) return std::min(n, end_ > from_ ? from_ - first : n);
    return first < end_ ? std::min(n, end_ - first) : n;
  }

 private:
  int64_t from_ = 0, end_ = 0;  // [from_, end_) is expanded
};

/// Tokens with the form of their rows: what a cached row depends on, position by position. Equal keys, equal bits.
constexpr int32_t kExpandedRow = 1 << 30;  ///< above every token id
inline std::vector<int32_t> row_keys(const std::vector<int32_t>& token_ids, const AttentionPlan& plan) {
  std::vector<int32_t> keys = token_ids;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (plan.expanded(static_cast<int64_t>(i))) keys[i] |= kExpandedRow;
  }
  return keys;
}

}  // namespace fathom
