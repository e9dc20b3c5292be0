#include "sampling/byte_grammar.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace fathom {
namespace {

using Symbol = ByteGrammar::Symbol;

/// Closes a row: a rule with no such id.
constexpr Symbol kEnd{Symbol::Kind::kRule, -1};
bool is_end(const Symbol& s) { return s.kind == Symbol::Kind::kRule && s.value < 0; }

/// A text that meets more states, or masks (of 16 KB for the largest vocabularies), than this starts to forget them.
constexpr size_t kMaxStates = 16384;
constexpr size_t kMaxMasks = 256;

}  // namespace

ByteGrammar::RuleId ByteGrammar::add_rule() {
  rules_.emplace_back();
  return static_cast<RuleId>(rules_.size() - 1);
}

void ByteGrammar::add_alternative(RuleId rule, const Row& row) {
  rules_.at(static_cast<size_t>(rule)).push_back(static_cast<int32_t>(symbols_.size()));
  symbols_.insert(symbols_.end(), row.begin(), row.end());
  symbols_.push_back(kEnd);
}

Symbol ByteGrammar::bytes(const ByteSet& set) {
  sets_.push_back(set);
  return {Symbol::Kind::kBytes, static_cast<int32_t>(sets_.size() - 1)};
}

Symbol ByteGrammar::byte(char c) {
  const auto value = static_cast<uint8_t>(c);
  const auto [it, is_new] = single_.try_emplace(value, static_cast<int32_t>(sets_.size()));
  if (is_new) sets_.emplace_back().set(value);
  return {Symbol::Kind::kBytes, it->second};
}

Symbol ByteGrammar::range(uint8_t first, uint8_t last) {
  ByteSet set;
  for (int b = first; b <= last; ++b) set.set(static_cast<size_t>(b));
  return bytes(set);
}

void ByteGrammar::append_literal(Row& row, std::string_view text) {
  for (const char c : text) row.push_back(byte(c));
}

TokenTrie::TokenTrie(std::vector<Token> tokens, size_t vocab_size) : nodes_(1), vocab_size_(vocab_size) {
  std::sort(tokens.begin(), tokens.end(),
            [](const Token& a, const Token& b) { return std::pair(a.bytes, a.id) < std::pair(b.bytes, b.id); });
  // In this order each token's path shares a beginning with the one before, and every new node is its parent's last
  // child.
  std::vector<int32_t> path = {0}, last_child = {-1};
  std::string_view previous;
  for (const Token& token : tokens) {
    FATHOM_CHECK(!token.bytes.empty(), "a token without bytes");
    size_t shared = 0;
    while (shared < previous.size() && shared < token.bytes.size() && previous[shared] == token.bytes[shared]) ++shared;
    path.resize(shared + 1);
    for (size_t i = shared; i < token.bytes.size(); ++i) {
      const auto node = static_cast<int32_t>(nodes_.size());
      const auto parent = static_cast<size_t>(path.back());
      nodes_.push_back({.byte = static_cast<uint8_t>(token.bytes[i])});
      last_child.push_back(-1);
      if (last_child[parent] < 0)
        nodes_[parent].first_child = node;
      else
        nodes_[static_cast<size_t>(last_child[parent])].next_sibling = node;
      last_child[parent] = node;
      path.push_back(node);
    }
    Node& end = nodes_[static_cast<size_t>(path.back())];
    if (end.n_tokens++ == 0) end.first_token = static_cast<int32_t>(token_ids_.size());
    token_ids_.push_back(token.id);
    previous = token.bytes;
  }
}

size_t GrammarMatcher::VectorHash::operator()(const std::vector<int32_t>& v) const {
  uint64_t hash = 0xcbf29ce484222325;
  for (const int32_t x : v) hash = (hash ^ static_cast<uint32_t>(x)) * 0x100000001b3;
  return static_cast<size_t>(hash);
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const ByteGrammar> grammar, std::shared_ptr<const TokenTrie> trie)
    : grammar_(std::move(grammar)), trie_(std::move(trie)) {
  std::vector<int32_t> frames;
  bool may_end = false;
  for (const int32_t row : grammar_->rules_.at(static_cast<size_t>(grammar_->start)))
    expand(row, kNone, frames, may_end);
  state_ = intern(std::move(frames), may_end);
}

int32_t GrammarMatcher::frame(int32_t place, int32_t parent) {
  const auto [it, is_new] = frame_ids_.try_emplace({place, parent}, static_cast<int32_t>(frames_.size()));
  if (is_new) frames_.push_back({place, parent});
  return it->second;
}

/// Adds what can be read at `place`: opens rules, and goes on behind rows that are over.
void GrammarMatcher::expand(int32_t place, int32_t parent, std::vector<int32_t>& out, bool& may_end) {
  std::vector<Frame> todo = {{place, parent}};
  while (!todo.empty()) {
    const Frame at = todo.back();
    todo.pop_back();
    const Symbol symbol = grammar_->symbols_[static_cast<size_t>(at.place)];
    if (is_end(symbol)) {
      if (at.parent == kNone)
        may_end = true;
      else
        todo.push_back(frames_[static_cast<size_t>(at.parent)]);
    } else if (symbol.kind == Symbol::Kind::kRule) {
      // A rule at the end of a row goes on where the row would have: repetition does not grow the stack.
      const bool is_last = is_end(grammar_->symbols_[static_cast<size_t>(at.place) + 1]);
      const int32_t back = is_last ? at.parent : frame(at.place + 1, at.parent);
      for (const int32_t row : grammar_->rules_[static_cast<size_t>(symbol.value)]) todo.push_back({row, back});
    } else {
      out.push_back(frame(at.place, at.parent));
    }
  }
}

int32_t GrammarMatcher::intern(std::vector<int32_t> frames, bool may_end) {
  std::sort(frames.begin(), frames.end());
  frames.erase(std::unique(frames.begin(), frames.end()), frames.end());
  if (frames.empty() && !may_end) return kNone;
  std::vector<int32_t> key = frames;
  if (may_end) key.push_back(-1);
  const auto [it, is_new] = state_ids_.try_emplace(std::move(key), static_cast<int32_t>(states_.size()));
  if (is_new) {
    State& state = states_.emplace_back();
    state.may_end = may_end;
    state.anything = std::any_of(frames.begin(), frames.end(), [&](int32_t f) {
      return grammar_->symbols_[static_cast<size_t>(frames_[static_cast<size_t>(f)].place)].kind ==
             Symbol::Kind::kAnything;
    });
    state.frames = std::move(frames);
    state.next.fill(kUnknown);
  }
  return it->second;
}

int32_t GrammarMatcher::step(int32_t state, uint8_t byte) {
  if (const int32_t known = states_[static_cast<size_t>(state)].next[byte]; known != kUnknown) return known;
  if (states_[static_cast<size_t>(state)].anything) return states_[static_cast<size_t>(state)].next[byte] = state;
  std::vector<int32_t> frames;
  bool may_end = false;
  for (const int32_t id : states_[static_cast<size_t>(state)].frames) {
    const Frame at = frames_[static_cast<size_t>(id)];
    const Symbol symbol = grammar_->symbols_[static_cast<size_t>(at.place)];
    if (symbol.kind == Symbol::Kind::kBytes && grammar_->sets_[static_cast<size_t>(symbol.value)][byte])
      expand(at.place + 1, at.parent, frames, may_end);
  }
  const int32_t next = intern(std::move(frames), may_end);
  return states_[static_cast<size_t>(state)].next[byte] = next;
}

int32_t GrammarMatcher::step_token(int32_t state, int32_t token_id) {
  std::vector<int32_t> frames;
  bool may_end = false;
  for (const int32_t id : std::vector<int32_t>(states_[static_cast<size_t>(state)].frames)) {
    const Frame at = frames_[static_cast<size_t>(id)];
    const Symbol symbol = grammar_->symbols_[static_cast<size_t>(at.place)];
    if (symbol.kind == Symbol::Kind::kToken && symbol.value == token_id)
      expand(at.place + 1, at.parent, frames, may_end);
  }
  return intern(std::move(frames), may_end);
}

void GrammarMatcher::work_out_mask(int32_t state) {
  std::vector<uint64_t> mask((trie_->vocab_size() + 63) / 64, 0);
  const auto allow = [&](int32_t id) {
    mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << (static_cast<size_t>(id) % 64);
  };
  for (const int32_t f : states_[static_cast<size_t>(state)].frames) {
    const Symbol symbol = grammar_->symbols_[static_cast<size_t>(frames_[static_cast<size_t>(f)].place)];
    if (symbol.kind == Symbol::Kind::kToken) allow(symbol.value);
  }
  std::vector<std::pair<int32_t, int32_t>> todo;  // children still to be looked at, and the state before them
  if (trie_->nodes_[0].first_child >= 0) todo.emplace_back(trie_->nodes_[0].first_child, state);
  while (!todo.empty()) {
    const auto [node_idx, before] = todo.back();
    todo.pop_back();
    const TokenTrie::Node& node = trie_->nodes_[static_cast<size_t>(node_idx)];
    if (node.next_sibling >= 0) todo.emplace_back(node.next_sibling, before);
    const int32_t after = step(before, node.byte);
    if (after == kNone) continue;
    for (int32_t i = 0; i < node.n_tokens; ++i) allow(trie_->token_ids_[static_cast<size_t>(node.first_token + i)]);
    if (node.first_child >= 0) todo.emplace_back(node.first_child, after);
  }
  states_[static_cast<size_t>(state)].mask = std::move(mask);
  ++n_masks_;
}

std::optional<std::span<const uint64_t>> GrammarMatcher::allowed() {
  if (states_[static_cast<size_t>(state_)].anything) return {};
  if (states_.size() > kMaxStates || n_masks_ > kMaxMasks) {
    // Only the current one is kept; the others come back as they are needed.
    State current = std::move(states_[static_cast<size_t>(state_)]);
    current.next.fill(kUnknown);
    std::vector<int32_t> key = current.frames;
    if (current.may_end) key.push_back(-1);
    states_.clear();
    n_masks_ = current.mask.empty() ? 0 : 1;
    state_ids_.clear();
    states_.push_back(std::move(current));
    state_ids_.emplace(std::move(key), 0);
    state_ = 0;
  }
  if (states_[static_cast<size_t>(state_)].mask.empty()) work_out_mask(state_);
  return states_[static_cast<size_t>(state_)].mask;
}

bool GrammarMatcher::accept(int32_t token_id, std::string_view bytes) {
  if (states_[static_cast<size_t>(state_)].anything) return true;
  int32_t after = step_token(state_, token_id);
  if (after == kNone) {
    if (bytes.empty()) return false;
    after = state_;
    for (const char c : bytes) {
      after = step(after, static_cast<uint8_t>(c));
      if (after == kNone) return false;
    }
  }
  state_ = after;
  return true;
}

}  // namespace fathom
