#include "text/chat_call_parser.h"

#include <utility>

#include "core/error.h"
#include "core/plain_text.h"
#include "text/chat_literals.h"

namespace fathom {

using namespace chat_literals;

void CallParser::start_call(std::string_view name) {
  open_ = true;
  calls_.push_back({.name = std::string(name), .arguments = {}, .complete = false});
  events_.push_back({ChatEvent::Kind::kCallStart, std::string(name), calls_.size() - 1});
}

void CallParser::give_arguments(std::string_view text) {
  if (text.empty()) return;
  calls_.back().arguments += text;
  if (!events_.empty() && events_.back().kind == ChatEvent::Kind::kCallArguments)
    events_.back().text += text;
  else
    events_.push_back({ChatEvent::Kind::kCallArguments, std::string(text), calls_.size() - 1});
}

void CallParser::end_call(bool complete) {
  open_ = false;
  calls_.back().complete = complete;
  events_.push_back({ChatEvent::Kind::kCallEnd, {}, calls_.size() - 1, complete});
}

std::unique_ptr<CallParser> make_call_parser(ToolSyntax syntax, std::vector<ChatTool> tools) {
  FATHOM_CHECK(syntax != ToolSyntax::kNone, "this chat format has no tool calls");
  if (syntax == ToolSyntax::kDsml) return call_parsers::make_dsml_parser(std::move(tools));
  return call_parsers::make_marker_parser(syntax == ToolSyntax::kFenced);
}

std::string_view block_marker(ToolSyntax syntax) { return syntax == ToolSyntax::kDsml ? "<｜DSML｜" : kCallsBegin; }

namespace {

/// V2.5 to V3.1: markers around the name and around the arguments, which are JSON already.
class MarkerCallParser final : public CallParser {
 public:
  explicit MarkerCallParser(bool fenced) : fenced_(fenced) {}

  void read(char c) override {
    if (state_ == State::kDone) return;
    static constexpr std::string_view kMarkers[] = {kCallBegin, kCallEnd, kCallsEnd, kSep};
    switch (scanner_.read(c, kMarkers)) {
      case MarkerScanner::Found::kHeld: return;
      case MarkerScanner::Found::kText:
        for (const char byte : scanner_.text()) read_text(byte);
        return;
      case MarkerScanner::Found::kMarker: read_marker(kMarkers[scanner_.index()]);
    }
  }

  void end() override {
    if (call_open()) close_call();
  }

 private:
  enum class State { kOutside, kType, kName, kFence, kArguments, kDone };

  static constexpr std::string_view kFenceOpen = "```json\n", kFenceClose = "\n```";

  void read_marker(std::string_view marker) {
    if (marker == kSep) {
      if (state_ != State::kType) {
        for (const char byte : marker) read_text(byte);
      } else if (fenced_) {
        name_.clear();  // what stood here is the type, always "function"
        state_ = State::kName;
      } else {
        begin_arguments(State::kArguments);
      }
      return;
    }
    // A fenced call may end right behind its name: a tool without arguments.
    if (state_ == State::kName && marker == kCallEnd) begin_arguments(State::kArguments);
    if (call_open()) {
      if (marker == kCallEnd && arguments().empty() && pending_is_blank()) give_arguments("{}");
      close_call();
    }
    name_.clear();
    state_ = marker == kCallBegin ? State::kType : marker == kCallEnd ? State::kOutside : State::kDone;
  }

  bool pending_is_blank() const { return pending_.find_first_not_of("\n`") == std::string::npos; }

  void read_text(char c) {
    switch (state_) {
      case State::kType: name_ += c; break;
      case State::kName:
        if (c == '\n')
          begin_arguments(State::kFence);
        else
          name_ += c;
        break;
      case State::kFence:
        pending_ += c;
        if (pending_ == kFenceOpen)
          pending_.clear();
        else if (kFenceOpen.starts_with(pending_))
          break;
        state_ = State::kArguments;
        for (const char byte : std::exchange(pending_, {})) read_argument(byte);
        break;
      case State::kArguments: read_argument(c); break;
      default: break;
    }
  }

  void begin_arguments(State next) {
    const std::string name(trimmed(name_));
    pending_.clear();
    state_ = State::kOutside;
    if (name.empty()) return;  // nobody could be called
    start_call(name);
    state_ = next;
  }

  /// The closing fence, and newlines behind it, are held back until it is clear that the arguments end there.
  void read_argument(char c) {
    if (!call_open()) return;
    const char byte[] = {c};
    if (!fenced_) return give_arguments(std::string_view(byte, 1));
    const bool closed = pending_.starts_with(kFenceClose);
    const bool goes_on = closed ? c == '\n' : pending_.size() < kFenceClose.size() && c == kFenceClose[pending_.size()];
    if (goes_on) {
      pending_ += c;
      return;
    }
    give_arguments(std::exchange(pending_, {}));
    if (c == '\n')
      pending_ += c;
    else
      give_arguments(std::string_view(byte, 1));
  }

  void close_call() {
    if (state_ == State::kArguments && !pending_.starts_with(kFenceClose)) give_arguments(pending_);
    pending_.clear();
    const size_t first = arguments().find_first_not_of(" \t\r\n");
    end_call(first != std::string::npos && arguments()[first] == '{' && ChatJson::accept(arguments()));
  }

  const bool fenced_;
  State state_ = State::kOutside;
  MarkerScanner scanner_;
  std::string name_;
  std::string pending_;  // what may be a fence
};

}  // namespace

namespace call_parsers {
std::unique_ptr<CallParser> make_marker_parser(bool fenced) { return std::make_unique<MarkerCallParser>(fenced); }
}  // namespace call_parsers

}  // namespace fathom
