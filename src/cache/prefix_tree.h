// Finds cached tokens again: a radix tree over token ids whose edges are pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/pages.h"

namespace fathom {

/// Remembers the pages of past sequences by their tokens. A node is one page and the 1 to 64 token ids in it; the path
/// from the root spells the text, so that a page is found only after equal tokens at equal positions: comparisons are
/// of tokens, never of hashes. A match may end inside a page: the page is shared and copied when it is written on
/// (Sequence::reserve). Every page in the tree counts the tree as one holder.
///
/// With recent rows (CacheLayout) the tree also holds the recent parts before the ends of texts, the least recently
/// used going first, and a match ends only where somebody still holds the parts that it takes to go on. Not
/// thread-safe, like the pool, which must outlive the tree.
class PrefixTree {
 public:
  /// Holds at most max_pages pages and recent parts of at most max_recent, the least recently used going first.
  PrefixTree(PagePool& pool, int64_t max_pages, int64_t max_recent = 0);
  ~PrefixTree() { clear(); }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  /// Remembers the first tokens.size() tokens of `sequence`, whose ids are `tokens` (not more than its length). Pages
  /// whose tokens are there already are not kept twice; a partly filled page gives way to a fuller one that begins with
  /// the same tokens. Returns how many of the tokens are in the tree now: fewer only if it is full of pages that others
  /// hold too. The sequence's last, partly filled page is shared from now on: it reserves before it writes, as after a
  /// fork. is_end: later texts may go on a few tokens before the end too (recent parts for kRecentSlack are held).
  int64_t insert(std::span<const int32_t> tokens, const Sequence& sequence, bool is_end = true);

  /// A sequence sharing the pages of the longest remembered beginning of `tokens`; empty if there is none. Marks them
  /// as used. A caller that needs logits leaves the last token out.
  Sequence match(std::span<const int32_t> tokens);
  /// Length of what match() would find. Marks nothing.
  int64_t match_length(std::span<const int32_t> tokens) const;
  /// The same if no recent part were missing.
  int64_t common_length(std::span<const int32_t> tokens) const { return walk(tokens, nullptr).n_common; }

  /// Gives up the least recently used pages that nobody else holds, ends of texts first, until n_pages came free or no
  /// more can. Returns how many did.
  int64_t evict(int64_t n_pages);
  void clear();

  int64_t n_pages() const { return n_pages_; }
  int64_t max_pages() const { return max_pages_; }
  /// Every page once, in no particular order: the `held` of PagePool::check_integrity.
  std::vector<int32_t> held_pages() const;
  /// Those of them whose recent parts the tree holds: its `held_recent`.
  std::vector<int32_t> held_recent() const;
  /// The first broken invariant of the tree, or nothing.
  std::optional<std::string> check_integrity() const;

 private:
  /// By the tokens, in dictionary order: the child with the longest common beginning with a text is next to the place
  /// where the text would stand. No key is the beginning of a sibling.
  struct TokenOrder {
    using is_transparent = void;
    bool operator()(std::span<const int32_t> a, std::span<const int32_t> b) const {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    }
  };
  struct Node;
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Node>, TokenOrder>;
  struct Node {
    Node* parent;
    Children::iterator self;  ///< in parent->children; the key is this page's tokens
    int32_t page_id;
    uint64_t last_used;        ///< unique; a parent's is above its children's
    Children children;         ///< empty unless the page is full
    uint64_t recent_used = 0;  ///< unique; 0: the tree does not hold the page's recent part
  };
  struct Found {
    Node* node;        ///< null: nothing in common
    int64_t n_common;  ///< tokens
  };

  static Found closest_child(const Node& node, std::span<const int32_t> tokens);
  Found walk(std::span<const int32_t> tokens, std::vector<int32_t>* pages) const;
  Found resumable(Found found) const;
  void hold_recent(Node* last, int64_t n_tokens, const Sequence& sequence, bool is_end);
  void touch_recent(Node* node);
  void let_recent_go(Node* node);
  void touch(Node* node);
  Node* add(Node* parent, std::span<const int32_t> tokens, int32_t page_id);
  void remove(Node* leaf);
  int64_t evict_except(int64_t n_pages, const Node* kept);

  PagePool& pool_;
  int64_t max_pages_;
  int64_t n_pages_ = 0;
  uint64_t clock_ = 0;
  Node root_{};                       // without a page
  std::map<uint64_t, Node*> leaves_;  // nodes without children by last_used
  int64_t max_recent_;
  std::map<uint64_t, Node*> recent_;  // nodes whose recent parts are held, by recent_used
};

}  // namespace fathom
