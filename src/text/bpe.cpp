#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <bitset>
#include <functional>
#include <limits>
#include <unordered_map>

#include "core/error.h"

namespace fathom {
namespace {

const std::vector<AddedToken> kNoTokens;

constexpr size_t kMaxTextBytes = std::numeric_limits<int32_t>::max();

// Long pieces rarely come twice, and a bounded number of short ones holds every common word.
constexpr size_t kMaxCachedPieceBytes = 64;
constexpr size_t kMaxCachedPieces = size_t{1} << 16;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The finalizer of SplitMix64: every bit of the pair reaches the low bits that pick a slot.
uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

// Encodes pieces one after another. One per call of encode(): holds buffers and the ids of pieces already seen.
class PieceEncoder {
 public:
  PieceEncoder(const Vocab& vocab, const MergeTable& table, std::vector<int32_t>& ids)
      : vocab_(vocab), table_(table), ids_(ids) {}

  // Appends the ids of `piece`, whose bytes must outlive this object.
  void append(std::string_view piece) {
    if (piece.size() > kMaxCachedPieceBytes) return merge(piece);
    if (const auto it = seen_.find(piece); it != seen_.end()) {
      // Not insert(): the source lies in the same vector.
      for (size_t i = it->second.begin; i < it->second.end; ++i) ids_.push_back(ids_[i]);
      return;
    }
    const size_t begin = ids_.size();
    merge(piece);
    if (seen_.size() < kMaxCachedPieces) seen_.emplace(piece, Range{begin, ids_.size()});
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr int32_t kMerged = -1;

  struct Range {
    size_t begin, end;  // into ids_
  };
  struct Symbol {      // a node of a doubly linked list; index order is text order
    int32_t token_id;  // kMerged: has become part of the symbol before it
    uint32_t previous, next;
  };

  // Lowest rank first, leftmost among equals. A heap of (rank, position of the left symbol) in one word; entries whose
  // pair has changed since are skipped when they come up.
  void merge(std::string_view piece) {
    load(piece);
    const auto count = static_cast<uint32_t>(symbols_.size());
    queue_.clear();
    for (uint32_t i = 0; i + 1 < count; ++i) {
      if (const auto* merge = pair_at(i)) queue_.push_back(queue_key(merge->rank, i));
    }
    std::make_heap(queue_.begin(), queue_.end(), std::greater<>());
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
      const auto position = static_cast<uint32_t>(queue_.back());
      const auto rank = static_cast<uint32_t>(queue_.back() >> 32);
      queue_.pop_back();
      const MergeTable::Entry* merge = pair_at(position);
      if (merge == nullptr || merge->rank != rank) continue;

      Symbol& left = symbols_[position];
      Symbol& right = symbols_[left.next];
      left.token_id = merge->result;
      left.next = right.next;
      right.token_id = kMerged;
      if (left.next != kNone) symbols_[left.next].previous = position;
      push(position);
      if (left.previous != kNone) push(left.previous);
    }
    for (uint32_t i = 0; i != kNone && count > 0; i = symbols_[i].next) ids_.push_back(symbols_[i].token_id);
  }

  void load(std::string_view piece) {
    symbols_.clear();
    const auto add = [&](char c) {
      const auto token = vocab_.byte_token(static_cast<uint8_t>(c));
      if (token) symbols_.push_back({*token, 0, 0});
      return token.has_value();
    };
    for (char c : piece) {
      if (add(c)) continue;
      for (char r : kReplacementCharacter) add(r);
    }
    const auto count = static_cast<uint32_t>(symbols_.size());
    for (uint32_t i = 0; i < count; ++i) {
      symbols_[i].previous = i == 0 ? kNone : i - 1;
      symbols_[i].next = i + 1 == count ? kNone : i + 1;
    }
  }

  const MergeTable::Entry* pair_at(uint32_t position) const {
    const Symbol& left = symbols_[position];
    if (left.token_id == kMerged || left.next == kNone) return nullptr;
    return table_.find(left.token_id, symbols_[left.next].token_id);
  }

  void push(uint32_t position) {
    if (const auto* merge = pair_at(position)) {
      queue_.push_back(queue_key(merge->rank, position));
      std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
    }
  }

  static uint64_t queue_key(uint32_t rank, uint32_t position) { return static_cast<uint64_t>(rank) << 32 | position; }

  const Vocab& vocab_;
  const MergeTable& table_;
  std::vector<int32_t>& ids_;
  std::unordered_map<std::string_view, Range> seen_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> queue_;
};

// The longest added token that `text` has at `pos`, or nullptr. `tokens` is sorted by text: every byte narrows the
// range of those that begin like the text.
const AddedToken* longest_added_token(const std::vector<AddedToken>& tokens, std::string_view text, size_t pos) {
  auto first = tokens.begin(), last = tokens.end();
  const AddedToken* longest = nullptr;
  for (size_t depth = 0; first != last && pos + depth < text.size(); ++depth) {
    const auto byte = static_cast<uint8_t>(text[pos + depth]);
    const auto byte_of = [depth](const AddedToken& token) { return static_cast<uint8_t>(token.text[depth]); };
    first = std::partition_point(first, last, [&](const AddedToken& t) { return byte_of(t) < byte; });
    last = std::partition_point(first, last, [&](const AddedToken& t) { return byte_of(t) == byte; });
    // Of those that share this prefix the one that ends here sorts first; the others are longer.
    if (first != last && first->text.size() == depth + 1) longest = &*first++;
  }
  return longest;
}

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) : slots_(std::bit_ceil(merges.size() * 2 + 1)) {
  const size_t mask = slots_.size() - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t pair = pair_key(merges[rank].left, merges[rank].right);
    size_t i = mix(pair) & mask;
    while (slots_[i].pair != UINT64_MAX && slots_[i].pair != pair) i = (i + 1) & mask;
    if (slots_[i].pair != pair) slots_[i] = {pair, {static_cast<uint32_t>(rank), merges[rank].result}};
  }
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t pair = pair_key(left, right);
  for (size_t i = mix(pair) & mask;; i = (i + 1) & mask) {
    if (slots_[i].pair == pair) return &slots_[i].entry;
    if (slots_[i].pair == UINT64_MAX) return nullptr;
  }
}

// Ordinary text with the added tokens taken out: token_id stands before text[position].
struct Tokenizer::Segments {
  struct Cut {
    size_t position;
    int32_t token_id;
  };
  std::string text;
  std::vector<Cut> cuts;
};

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool match_special) const {
  Segments segments;
  append_part(text, match_special ? vocab_.added_tokens() : kNoTokens, segments);
  return encode_segments(segments);
}

std::vector<int32_t> Tokenizer::encode_document(std::string_view text) const {
  std::vector<AddedToken> markers = vocab_.added_tokens();
  std::erase_if(markers, [&](const AddedToken& token) { return vocab_.type(token.token_id) == TokenType::kControl; });
  Segments segments;
  append_part(text, markers, segments);
  return encode_segments(segments);
}

std::vector<int32_t> Tokenizer::encode(std::span<const PromptPart> parts) const {
  Segments segments;
  for (const PromptPart& part : parts)
    append_part(part.text, part.special ? vocab_.added_tokens() : kNoTokens, segments);
  return encode_segments(segments);
}

void Tokenizer::append_part(std::string_view text, const std::vector<AddedToken>& matched, Segments& segments) {
  if (text.size() > kMaxTextBytes - segments.text.size()) {
    throw Error(ErrorCode::kUsage,
                "text to encode: expected at most " + std::to_string(kMaxTextBytes) + " bytes, got more");
  }
  std::bitset<256> first_bytes;  // nearly every position of a text is ruled out by it
  for (const AddedToken& token : matched) first_bytes.set(static_cast<uint8_t>(token.text[0]));
  size_t begin = 0;
  for (size_t pos = 0; !matched.empty() && pos < text.size();) {
    const bool possible = first_bytes.test(static_cast<uint8_t>(text[pos]));
    const AddedToken* token = possible ? longest_added_token(matched, text, pos) : nullptr;
    if (token == nullptr) {
      ++pos;
      continue;
    }
    segments.text += text.substr(begin, pos - begin);
    segments.cuts.push_back({segments.text.size(), token->token_id});
    begin = pos += token->text.size();
  }
  segments.text += text.substr(begin);
}

std::vector<int32_t> Tokenizer::encode_segments(const Segments& segments) const {
  std::vector<int32_t> ids;
  ids.reserve(segments.text.size() / 3 + segments.cuts.size());
  PieceEncoder encoder(vocab_, table_, ids);
  const std::function<void(std::string_view)> append = [&](std::string_view piece) { encoder.append(piece); };
  const std::string_view text = segments.text;
  size_t begin = 0;
  for (const Segments::Cut& cut : segments.cuts) {
    split_pieces(vocab_.pre_tokenizer(), text.substr(begin, cut.position - begin), append);
    ids.push_back(cut.token_id);
    begin = cut.position;
  }
  split_pieces(vocab_.pre_tokenizer(), text.substr(begin), append);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, ControlTokens control) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (control == ControlTokens::kHide && vocab_.type(id) == TokenType::kControl) continue;
    bytes += vocab_.bytes(id);
  }
  return bytes;
}

std::string TokenStream::push(int32_t token_id) {
  const Vocab& vocab = tokenizer_.vocab();
  const std::string_view bytes = vocab.bytes(token_id);
  if (control_ == ControlTokens::kHide && vocab.type(token_id) == TokenType::kControl) return {};
  return utf8_.push(bytes);
}

}  // namespace fathom
