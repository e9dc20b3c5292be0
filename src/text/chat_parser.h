// What a model writes, as a stream: split into reasoning, answer and tool calls while it arrives.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_generation.h"
#include "text/chat_json.h"
#include "text/chat_message.h"
#include "text/utf8.h"

namespace fathom {

struct ChatParserOptions {
  bool starts_in_reasoning = false;  ///< the prompt ended with <think>: see opens_reasoning
  bool parse_calls = true;           ///< look for tool calls; else their markup is text
  /// With the request's tools, DSML arguments are given the JSON type that the tool's schema asks for where the model
  /// named the other one and the value allows it. May be empty.
  std::vector<ChatTool> tools;
};

struct ChatEvent {
  enum class Kind { kReasoning, kContent, kCallStart, kCallArguments, kCallEnd };

  Kind kind;
  std::string text;       ///< the next piece of reasoning, content or arguments; the name of a started call
  size_t call_idx = 0;    ///< calls only
  bool complete = false;  ///< kCallEnd only: the arguments are a whole JSON object
};

struct ParsedCall {
  std::string name;
  std::string arguments;  ///< JSON text of an object if complete, else as far as it came
  bool complete = false;
};

struct ParsedChat {
  std::string reasoning_content;
  std::string content;
  std::vector<ParsedCall> tool_calls;
  std::string finish_reason;  ///< as given to finish, but "tool_calls" for "stop" after a complete call

  /// {"reasoning_content", "content", "tool_calls": [{"name", "arguments"}], "finish_reason"}. Only complete calls are
  /// tool calls; the others, if any, are listed likewise under "incomplete_tool_calls".
  ChatJson to_json() const;
};

class CallParser;

/// One answer. Fed with the model's text in any pieces, also cut inside characters: all results are the same however it
/// is cut, and what the events gave out so far is always a prefix of the final text. What may be the beginning of a
/// marker is held back until it is known; what is left at the end is text. Newlines at the seams (behind the start of
/// the reasoning, around
/// </think>, before a block of calls) are dropped. A block of calls ends open reasoning, and nothing behind it is
/// shown. A stray </think> is dropped if the generation reasons. Bytes that are not UTF-8 become U+FFFD. Linear in the
/// text, no recursion, no state beyond the object. Not thread-safe.
class ChatParser {
 public:
  ChatParser(ChatGeneration generation, ChatParserOptions options);
  ~ChatParser();
  ChatParser(ChatParser&&) noexcept;

  /// Events in the order of the text; neighbouring pieces of one kind come as one.
  std::vector<ChatEvent> feed(std::string_view piece);

  /// Once, at the end. `reason` says why the model stopped: "stop", "length" or any other word.
  std::vector<ChatEvent> finish(std::string_view reason);

  /// Complete after finish.
  const ParsedChat& result() const { return result_; }

 private:
  enum class Part { kReasoning, kContent, kCalls };

  void read(char c);
  bool is_marker(std::string_view text, bool whole) const;
  void found_marker();
  void write(char c);
  void flush_newlines();
  void give(ChatEvent::Kind kind, std::string_view text);
  void drain_calls();

  ChatGeneration generation_;
  ChatParserOptions options_;
  Part part_;
  bool may_open_reasoning_;  // nothing but newlines so far, and a <think> would begin the reasoning
  bool at_seam_;             // newlines are dropped until something else comes
  size_t n_newlines_ = 0;    // held back: they are dropped if a seam follows
  std::string held_;         // may become a marker
  Utf8Stream utf8_;
  std::unique_ptr<CallParser> calls_;
  std::vector<ChatEvent> events_;
  ParsedChat result_;
};

}  // namespace fathom
