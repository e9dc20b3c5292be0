// The inside of a block of tool calls, one parser for each syntax. Used by ChatParser only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat_parser.h"

namespace fathom {

/// Is fed the block from its first marker on, one byte at a time; whatever is no call is dropped. Markers may stand
/// anywhere and may be cut off anywhere. A call is known from its name on.
class CallParser {
 public:
  virtual ~CallParser() = default;
  virtual void read(char c) = 0;
  /// The text ends here: a call that is still open is not complete, unless its arguments are.
  virtual void end() = 0;

  const std::vector<ParsedCall>& calls() const { return calls_; }
  std::vector<ChatEvent> take_events() { return std::exchange(events_, {}); }

 protected:
  void start_call(std::string_view name);
  void give_arguments(std::string_view text);
  void end_call(bool complete);
  bool call_open() const { return open_; }
  const std::string& arguments() const { return calls_.back().arguments; }

 private:
  std::vector<ParsedCall> calls_;
  std::vector<ChatEvent> events_;
  bool open_ = false;
};

/// `syntax` is not kNone; `tools` may be empty.
std::unique_ptr<CallParser> make_call_parser(ToolSyntax syntax, std::vector<ChatTool> tools);

/// The marker in front of a block in this syntax.
std::string_view block_marker(ToolSyntax syntax);

namespace call_parsers {  // the two behind make_call_parser
std::unique_ptr<CallParser> make_marker_parser(bool fenced);
std::unique_ptr<CallParser> make_dsml_parser(std::vector<ChatTool> tools);
}  // namespace call_parsers

/// Finds markers in a stream of bytes. Every marker begins with '<' and has no other, so that a failed match needs no
/// way back.
class MarkerScanner {
 public:
  enum class Found { kText, kHeld, kMarker };

  /// kMarker: `markers[index()]` is complete. kHeld: c may belong to one. kText: text() is not part of any; c is its
  /// last byte, or is the beginning of a possible marker again and held.
  template <size_t N> Found read(char c, const std::string_view (&markers)[N]) {
    if (held_.empty() && c != '<') {
      text_.clear();
      text_ += c;
      return Found::kText;
    }
    text_.clear();
    held_ += c;
    for (size_t i = 0; i < N; ++i) {
      if (markers[i] == held_) {
        index_ = i;
        held_.clear();
        return Found::kMarker;
      }
    }
    for (const std::string_view marker : markers) {
      if (marker.starts_with(held_)) return Found::kHeld;
    }
    const bool restart = c == '<' && held_.size() > 1;
    if (restart) held_.pop_back();
    text_.swap(held_);  // held_ is now empty
    if (restart) held_ += c;
    return Found::kText;
  }

  size_t index() const { return index_; }
  const std::string& text() const { return text_; }

 private:
  std::string held_, text_;
  size_t index_ = 0;
};

}  // namespace fathom
