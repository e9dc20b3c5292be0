#include "cache/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace fathom {
namespace {

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t first) {
  return tokens.subspan(static_cast<size_t>(first),
                        std::min<size_t>(kPageTokens, tokens.size() - static_cast<size_t>(first)));
}

}  // namespace

PrefixTree::PrefixTree(PagePool& pool, int64_t max_pages) : pool_(pool), max_pages_(max_pages) {
  FATHOM_CHECK(max_pages >= 0, "a negative number of pages");
}

PrefixTree::Found PrefixTree::closest_child(const Node& node, std::span<const int32_t> tokens) {
  Found best{nullptr, 0};
  auto consider = [&](Children::const_iterator child) {
    const int64_t n = common_length(child->first, tokens);
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
  leaves_.erase(leaf->last_used);
  pool_.release(leaf->page_id);
  --n_pages_;
  Node* parent = leaf->parent;
  parent->children.erase(leaf->self);
  if (parent != &root_ && parent->children.empty()) leaves_.emplace(parent->last_used, parent);
}

int64_t PrefixTree::insert(std::span<const int32_t> tokens, const Sequence& sequence) {
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
  return n_kept;
}

Sequence PrefixTree::match(std::span<const int32_t> tokens) {
  std::vector<int32_t> pages;
  const Found found = walk(tokens, &pages);
  if (found.node != nullptr) touch(found.node);
  return Sequence(pool_, pages, found.n_common);
}

int64_t PrefixTree::match_length(std::span<const int32_t> tokens) const { return walk(tokens, nullptr).n_common; }

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
      if (previous != nullptr && common_length(*previous, tokens) == static_cast<int64_t>(previous->size())) {
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
  if (n_pages > max_pages_) return "the tree holds more than " + std::to_string(max_pages_) + " pages";
  return std::nullopt;
}

}  // namespace fathom
