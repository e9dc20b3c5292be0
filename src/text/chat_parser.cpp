#include "text/chat_parser.h"

#include <utility>

#include "text/chat_call_parser.h"
#include "text/chat_literals.h"

namespace fathom {

using namespace chat_literals;

ChatJson ParsedChat::to_json() const {
  ChatJson complete = ChatJson::array(), incomplete = ChatJson::array();
  for (const ParsedCall& call : tool_calls) {
    ChatJson object = ChatJson::object();
    object["name"] = call.name;
    object["arguments"] = call.arguments;
    (call.complete ? complete : incomplete).push_back(std::move(object));
  }
  ChatJson object = ChatJson::object();
  object["reasoning_content"] = reasoning_content;
  object["content"] = content;
  object["tool_calls"] = std::move(complete);
  if (!incomplete.empty()) object["incomplete_tool_calls"] = std::move(incomplete);
  object["finish_reason"] = finish_reason;
  return object;
}

ChatParser::ChatParser(ChatGeneration generation, ChatParserOptions options)
    : generation_(generation),
      options_(std::move(options)),
      part_(options_.starts_in_reasoning ? Part::kReasoning : Part::kContent),
      // R1-0528 writes the tag itself; the others up to V3.1 may repeat the one that the prompt gave.
      may_open_reasoning_(generation == ChatGeneration::kR1 || generation == ChatGeneration::kR1_0528 ||
                          (options_.starts_in_reasoning && tool_syntax_of(generation) != ToolSyntax::kDsml)),
      at_seam_(options_.starts_in_reasoning) {
  if (tool_syntax_of(generation) == ToolSyntax::kNone) options_.parse_calls = false;
}

ChatParser::~ChatParser() = default;
ChatParser::ChatParser(ChatParser&&) noexcept = default;

std::vector<ChatEvent> ChatParser::feed(std::string_view piece) {
  for (const char c : utf8_.push(piece)) read(c);
  drain_calls();
  return std::exchange(events_, {});
}

std::vector<ChatEvent> ChatParser::finish(std::string_view reason) {
  for (const char c : utf8_.flush()) read(c);
  result_.finish_reason = reason;
  if (part_ == Part::kCalls) {
    calls_->end();
    drain_calls();
    result_.tool_calls = calls_->calls();
    for (const ParsedCall& call : result_.tool_calls) {
      if (call.complete && reason == "stop") result_.finish_reason = "tool_calls";
    }
  } else {
    for (const char c : std::exchange(held_, {})) write(c);
    // Reasoning that is broken off goes on behind its newlines; reasoning that ends, ends before them.
    if (part_ == Part::kContent || reason == "length") flush_newlines();
  }
  return std::exchange(events_, {});
}

void ChatParser::read(char c) {
  if (part_ == Part::kCalls) return calls_->read(c);
  if (held_.empty() && c != '<') return write(c);
  held_ += c;
  if (is_marker(held_, true)) return found_marker();
  if (is_marker(held_, false)) return;
  // Markers have no second '<', so that a new one can begin only with c.
  held_.pop_back();
  for (const char byte : std::exchange(held_, {})) write(byte);
  if (c != '<') return write(c);
  held_ += c;
}

/// Whether `text` is, or begins, a marker that means something here.
bool ChatParser::is_marker(std::string_view text, bool whole) const {
  const auto matches = [&](std::string_view marker) { return whole ? marker == text : marker.starts_with(text); };
  const bool reasons = can_reason(generation_) || options_.starts_in_reasoning;
  if (reasons && matches(kThinkEnd)) return true;
  if (may_open_reasoning_ && matches(kThink)) return true;
  return options_.parse_calls && matches(block_marker(tool_syntax_of(generation_)));
}

void ChatParser::found_marker() {
  const std::string marker = std::exchange(held_, {});
  if (marker == kThinkEnd && part_ == Part::kContent) return;
  n_newlines_ = 0;
  may_open_reasoning_ = false;
  at_seam_ = true;
  if (marker == kThink) {
    part_ = Part::kReasoning;
  } else if (marker == kThinkEnd) {
    part_ = Part::kContent;
  } else {
    part_ = Part::kCalls;
    calls_ = make_call_parser(tool_syntax_of(generation_), options_.tools);
    for (const char c : marker) calls_->read(c);
  }
}

void ChatParser::write(char c) {
  if (c == '\n') {
    if (!at_seam_) ++n_newlines_;
    return;
  }
  at_seam_ = false;
  may_open_reasoning_ = false;
  flush_newlines();
  const char byte[] = {c};
  give(part_ == Part::kReasoning ? ChatEvent::Kind::kReasoning : ChatEvent::Kind::kContent, std::string_view(byte, 1));
}

void ChatParser::flush_newlines() {
  if (n_newlines_ == 0) return;
  const std::string newlines(std::exchange(n_newlines_, 0), '\n');
  give(part_ == Part::kReasoning ? ChatEvent::Kind::kReasoning : ChatEvent::Kind::kContent, newlines);
}

void ChatParser::give(ChatEvent::Kind kind, std::string_view text) {
  (kind == ChatEvent::Kind::kReasoning ? result_.reasoning_content : result_.content) += text;
  if (!events_.empty() && events_.back().kind == kind)
    events_.back().text += text;
  else
    events_.push_back({kind, std::string(text)});
}

void ChatParser::drain_calls() {
  if (!calls_) return;
  for (ChatEvent& event : calls_->take_events()) events_.push_back(std::move(event));
}

}  // namespace fathom
