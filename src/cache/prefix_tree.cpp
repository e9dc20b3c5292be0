#include "cache/prefix_tree.h"

#include <algorithm>

#include "core/error.h"

namespace fathom {
namespace {

int64_t common_beginning(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

int64_t pages_for(int64_t n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t first) {
  return tokens.subspan(static_cast<size_t>(first),
                        std::min<size_t>(kPageTokens, tokens.size() - static_cast<size_t>(first)));
}

}  // namespace

PrefixTree::PrefixTree(PagePool& pool, int64_t max_pages, int64_t max_recent)
    : pool_(pool), max_pages_(max_pages), max_recent_(pool.layout().has_recent() ? max_recent : 0) {
  FATHOM_CHECK(max_pages >= 0 && max_recent >= 0, "a negative number of pages");
}

PrefixTree::Found PrefixTree::closest_child(const Node& node, std::span<const int32_t> tokens) {
  Found best{nullptr, 0};
  auto consider = [&](Children::const_iterator child) {
    const int64_t n = common_beginning(child->first, tokens);
    if (n > best.n_common) best = {child->second.get(), n};
  };
  const auto after = node.children.lower_bound(tokens);
  if (after != node.children.end()) consider(after);
  if (after != node.children.begin()) consider(std::prev(after));
  return best;
}

/// Follows `tokens` from the root, collecting pages if asked; the last node reached and how many tokens led there.
PrefixTree::Found PrefixTree::walk(std::span<const int32_t> tokens, std::vector<int32_t>* pages) const {
  Found last{nullptr, 0};
  const Node* node = &root_;
  while (last.n_common < static_cast<int64_t>(tokens.size())) {
    const Found found = closest_child(*node, page_of(tokens, last.n_common));
    if (found.node == nullptr) break;
    node = found.node;
    last = {found.node, last.n_common + found.n_common};
    if (pages != nullptr) pages->push_back(node->page_id);
    if (found.n_common < kPageTokens) break;
  }
  return last;
}

/// The same end, or the latest one before it from which a text can go on, at the end of a page.
PrefixTree::Found PrefixTree::resumable(Found found) const {
  const CacheLayout& layout = pool_.layout();
  while (layout.has_recent() && found.node != nullptr) {
    const int64_t n_pages = pages_for(found.n_common);
    int64_t first_recent = n_pages;
    for (const Node* node = found.node; !resumable_at(layout, found.n_common, first_recent); node = node->parent) {
      if (node == &root_ || !pool_.has_recent(node->page_id)) break;
      --first_recent;
    }
    if (resumable_at(layout, found.n_common, first_recent)) break;
    found = {found.node->parent == &root_ ? nullptr : found.node->parent, (n_pages - 1) * kPageTokens};
  }
  return found;
}

/// Holds the recent parts that it takes to go on after n_tokens, the last of which are in `last`.
void PrefixTree::hold_recent(Node* last, int64_t n_tokens, const Sequence& sequence, bool is_end) {
  const int64_t kept = pool_.layout().recent_tokens + (is_end ? kRecentSlack : 0);
  const int64_t first = std::max(sequence.first_recent(), std::max<int64_t>(0, n_tokens - kept) / kPageTokens);
  Node* node = last;
  for (int64_t i = pages_for(n_tokens) - 1; i >= first; --i, node = node->parent) {
    // The page of an earlier evaluation may have lost its part: the sequence's has the same rows, if it has as many.
    if (const int32_t page_id = sequence.pages()[static_cast<size_t>(i)]; !pool_.has_recent(node->page_id)) {
      if (std::ssize(node->self->first) > n_tokens - i * kPageTokens) return;
      pool_.retain(page_id);
      pool_.release(node->page_id);
      node->page_id = page_id;
    }
    touch_recent(node);
  }
  while (std::ssize(recent_) > max_recent_) let_recent_go(recent_.begin()->second);
}

void PrefixTree::touch_recent(Node* node) {
  if (node->recent_used == 0) {
    pool_.retain_recent(node->page_id);
  } else {
    recent_.erase(node->recent_used);
  }
  node->recent_used = ++clock_;
  recent_.emplace(node->recent_used, node);
}

void PrefixTree::let_recent_go(Node* node) {
  if (node->recent_used == 0) return;
  recent_.erase(node->recent_used);
  node->recent_used = 0;
  pool_.release_recent(node->page_id);
}

/// The node and the way to it become the most recently used, each parent above its children.
void PrefixTree::touch(Node* node) {
  if (node == &root_) return;
  const bool is_leaf = leaves_.erase(node->last_used) == 1;
  const uint64_t last_used = ++clock_;
  node->last_used = last_used;
  if (is_leaf) leaves_.emplace(last_used, node);
  for (Node* n = node->parent; n != &root_; n = n->parent) n->last_used = ++clock_;
}

PrefixTree::Node* PrefixTree::add(Node* parent, std::span<const int32_t> tokens, int32_t page_id) {
  if (parent->children.empty()) leaves_.erase(parent->last_used);
  const auto [self, is_new] = parent->children.emplace(std::vector<int32_t>(tokens.begin(), tokens.end()), nullptr);
  FATHOM_CHECK(is_new, "a page is in the tree already");
  self->second = std::make_unique<Node>(Node{parent, self, page_id, ++clock_, {}});
  Node* node = self->second.get();
  leaves_.emplace(node->last_used, node);
  pool_.retain(page_id);
  ++n_pages_;
  return node;
}

void PrefixTree::remove(Node* leaf) {
  let_recent_go(leaf);
  leaves_.erase(leaf->last_used);
  pool_.release(leaf->page_id);
  --n_pages_;
  Node* parent = leaf->parent;
  parent->children.erase(leaf->self);
  if (parent != &root_ && parent->children.empty()) leaves_.emplace(parent->last_used, parent);
}

int64_t PrefixTree::insert(std::span<const int32_t> tokens, const Sequence& sequence, bool is_end) {
  FATHOM_CHECK(&sequence.pool() == &pool_, "the sequence belongs to another pool");
  FATHOM_CHECK(static_cast<int64_t>(tokens.size()) <= sequence.length(),
               std::to_string(tokens.size()) + " tokens of a sequence of " + std::to_string(sequence.length()));
  Node* node = &root_;
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  int64_t n_kept = 0;
  while (n_kept < n_tokens) {
    const std::span<const int32_t> page = page_of(tokens, n_kept);
    const Found found = closest_child(*node, page);
    if (found.n_common == static_cast<int64_t>(page.size())) {
      node = found.node;
    } else {
      // A child that is the beginning of this page knows nothing that the new one does not: a leaf, as it is not full.
      if (found.node != nullptr && found.n_common == static_cast<int64_t>(found.node->self->first.size())) {
        remove(found.node);
      } else if (n_pages_ >= max_pages_ && evict_except(1, node) == 0) {
        break;
      }
      node = add(node, page, sequence.pages()[static_cast<size_t>(n_kept / kPageTokens)]);
    }
    n_kept += static_cast<int64_t>(page.size());
  }
  touch(node);
  if (pool_.layout().has_recent() && node != &root_) hold_recent(node, n_kept, sequence, is_end);
  return n_kept;
}

Sequence PrefixTree::match(std::span<const int32_t> tokens) {
  std::vector<int32_t> pages;
  const Found found = resumable(walk(tokens, &pages));
  pages.resize(static_cast<size_t>(pages_for(found.n_common)));
  if (found.node != nullptr) touch(found.node);
  for (Node* node = found.node; node != nullptr && node->recent_used != 0; node = node->parent) touch_recent(node);
  return Sequence(pool_, pages, found.n_common);
}

int64_t PrefixTree::match_length(std::span<const int32_t> tokens) const {
  return resumable(walk(tokens, nullptr)).n_common;
}

int64_t PrefixTree::evict(int64_t n_pages) { return evict_except(n_pages, nullptr); }

int64_t PrefixTree::evict_except(int64_t n_pages, const Node* kept) {
  int64_t n_freed = 0;
  for (auto it = leaves_.begin(); it != leaves_.end() && n_freed < n_pages;) {
    const auto [last_used, leaf] = *it;
    if (leaf == kept || pool_.ref_count(leaf->page_id) > 1) {
      ++it;
      continue;
    }
    remove(leaf);
    ++n_freed;
    it = leaves_.upper_bound(last_used);  // a parent that became a leaf by this was used later than its child
  }
  return n_freed;
}

/// From the leaves up, without recursion: a text of a million tokens is a path of sixteen thousand nodes.
void PrefixTree::clear() {
  while (!leaves_.empty()) remove(leaves_.begin()->second);
}

std::vector<int32_t> PrefixTree::held_pages() const {
  std::vector<int32_t> pages;
  std::vector<const Node*> open{&root_};
  while (!open.empty()) {
    const Node* node = open.back();
    open.pop_back();
    if (node != &root_) pages.push_back(node->page_id);
    for (const auto& [tokens, child] : node->children) open.push_back(child.get());
  }
  return pages;
}

std::vector<int32_t> PrefixTree::held_recent() const {
  std::vector<int32_t> pages;
  for (const auto& [used, node] : recent_) pages.push_back(node->page_id);
  return pages;
}

std::optional<std::string> PrefixTree::check_integrity() const {
  int64_t n_pages = 0;
  size_t n_leaves = 0;
  std::vector<const Node*> open{&root_};
  while (!open.empty()) {
    const Node* node = open.back();
    open.pop_back();
    const std::vector<int32_t>* previous = nullptr;
    for (const auto& [tokens, child] : node->children) {
      const std::string name = "the node of page " + std::to_string(child->page_id);
      if (child->parent != node || &child->self->second != &child) return name + " does not know its parent";
      if (tokens.empty() || tokens.size() > kPageTokens)
        return name + " has " + std::to_string(tokens.size()) + " tokens";
      if (!child->children.empty() && tokens.size() != kPageTokens) return name + " goes on after a part of a page";
      if (node != &root_ && child->last_used >= node->last_used) return name + " is younger than its parent";
      if (child->recent_used != 0 && !recent_.contains(child->recent_used))
        return name + " holds a recent part that is not listed";
      if (previous != nullptr && common_beginning(*previous, tokens) == static_cast<int64_t>(previous->size())) {
        return name + " repeats the beginning of a sibling";
      }
      if (child->children.empty() && !leaves_.contains(child->last_used)) return name + " is a leaf that is not listed";
      n_leaves += child->children.empty() ? 1 : 0;
      ++n_pages;
      previous = &tokens;
      open.push_back(child.get());
    }
  }
  if (n_pages != n_pages_)
    return "the tree counts " + std::to_string(n_pages_) + " pages, but has " + std::to_string(n_pages);
  if (n_leaves != leaves_.size()) return "a listed leaf is not in the tree";
  if (std::ssize(recent_) > max_recent_)
    return "the tree holds more than " + std::to_string(max_recent_) + " recent parts";
  if (n_pages > max_pages_) return "the tree holds more than " + std::to_string(max_pages_) + " pages";
  return std::nullopt;
}

}  // namespace fathom
