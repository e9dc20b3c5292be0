#include "main/key_reader.h"

#include <algorithm>

#include "text/utf8.h"

namespace fathom {
namespace {

constexpr std::string_view kPasteBegin = "\x1b[200~";
constexpr std::string_view kPasteEnd = "\x1b[201~";
constexpr size_t kLongestSequence = 32;

/// Of "ESC [ parameters final" and "ESC O final"; modifiers as xterm numbers them (5: Ctrl, 3: Alt).
Key::Kind kind_of(std::string_view parameters, char final) {
  const bool by_word = parameters.ends_with(";5") || parameters.ends_with(";3");
  switch (final) {
    case 'A': return Key::Kind::kUp;
    case 'B': return Key::Kind::kDown;
    case 'C': return by_word ? Key::Kind::kWordRight : Key::Kind::kRight;
    case 'D': return by_word ? Key::Kind::kWordLeft : Key::Kind::kLeft;
    case 'H': return Key::Kind::kHome;
    case 'F': return Key::Kind::kEnd;
    case '~':
      if (parameters == "1" || parameters == "7") return Key::Kind::kHome;
      if (parameters == "4" || parameters == "8") return Key::Kind::kEnd;
      if (parameters == "3") return Key::Kind::kDelete;
      return Key::Kind::kUnknown;
    default: return Key::Kind::kUnknown;
  }
}

}  // namespace

bool KeyReader::next_paste(Key& key) {
  const size_t end = pending_.find(kPasteEnd);
  if (end == std::string::npos) {
    // What may be the begin of the end mark stays.
    const size_t keep = std::min(pending_.size(), kPasteEnd.size() - 1);
    pasted_.append(pending_, 0, pending_.size() - keep);
    pending_.erase(0, pending_.size() - keep);
    return false;
  }
  pasted_.append(pending_, 0, end);
  pending_.erase(0, end + kPasteEnd.size());
  in_paste_ = false;
  // Terminals send a line's end as CR.
  std::string text;
  for (size_t i = 0; i < pasted_.size(); ++i) {
    if (pasted_[i] == '\r') {
      text += '\n';
      if (i + 1 < pasted_.size() && pasted_[i + 1] == '\n') ++i;
    } else {
      text += pasted_[i];
    }
  }
  pasted_.clear();
  key = {Key::Kind::kPaste, to_valid_utf8(text), 0};
  return true;
}

bool KeyReader::next_escape(Key& key, bool no_more_bytes) {
  auto take = [&](size_t n, Key::Kind kind, char letter = 0) {
    pending_.erase(0, n);
    key = {kind, "", letter};
    return true;
  };
  if (pending_.size() == 1) return no_more_bytes ? take(1, Key::Kind::kEscape) : false;
  const char second = pending_[1];
  if (second == 'O') {
    if (pending_.size() < 3) return no_more_bytes ? take(2, Key::Kind::kAlt, 'O') : false;
    return take(3, kind_of("", pending_[2]));
  }
  if (second != '[') {
    if (second == '\r' || second == '\n') return take(2, Key::Kind::kNewline);
    if (second == 0x7f) return take(2, Key::Kind::kAlt, '\b');
    return take(2, Key::Kind::kAlt, second);
  }
  size_t end = 2;
  while (end < pending_.size() && (pending_[end] < 0x40 || pending_[end] > 0x7e)) ++end;
  if (end == pending_.size()) return no_more_bytes || end > kLongestSequence ? take(end, Key::Kind::kUnknown) : false;
  if (pending_.starts_with(kPasteBegin)) {
    pending_.erase(0, kPasteBegin.size());
    in_paste_ = true;
    return next_paste(key);
  }
  const std::string parameters = pending_.substr(2, end - 2);
  return take(end + 1, kind_of(parameters, pending_[end]));
}

bool KeyReader::next(Key& key, bool no_more_bytes) {
  if (in_paste_) return next_paste(key);
  if (pending_.empty()) return false;
  const char c = pending_[0];
  if (c == '\x1b') return next_escape(key, no_more_bytes);
  if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
    pending_.erase(0, 1);
    key = {Key::Kind::kControl, "", static_cast<char>(c | 0x60)};
    if (c == '\r') key.kind = Key::Kind::kEnter;
    if (c == '\n') key.kind = Key::Kind::kNewline;
    if (c == '\t') key.kind = Key::Kind::kTab;
    if (c == 0x7f || c == '\b') key.kind = Key::Kind::kBackspace;
    return true;
  }
  // A run of characters, up to an unfinished one.
  size_t end = 0;
  while (end < pending_.size() && static_cast<unsigned char>(pending_[end]) >= 0x20 && pending_[end] != 0x7f) {
    const Utf8Unit unit = read_utf8(pending_, end);
    if (unit.state == Utf8Unit::State::kUnfinished && !no_more_bytes) break;
    end += unit.length;
  }
  if (end == 0) return false;
  key = {Key::Kind::kText, to_valid_utf8(std::string_view(pending_).substr(0, end)), 0};
  pending_.erase(0, end);
  return true;
}

}  // namespace fathom
