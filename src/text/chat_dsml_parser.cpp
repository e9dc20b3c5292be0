// The calls of V3.2 and V4: <｜DSML｜invoke name="..."> with a <｜DSML｜parameter name="..." string="true|false"> for
// each argument. The arguments come out as one JSON object; long strings stream while they are written.
#include <optional>
#include <utility>

#include "text/chat_call_parser.h"

#include "core/plain_text.h"

namespace fathom {
namespace {

class DsmlCallParser final : public CallParser {
 public:
  explicit DsmlCallParser(std::vector<ChatTool> tools) : tools_(std::move(tools)) {}

  void read(char c) override {
    switch (state_) {
      case State::kBetween: read_between(c); break;
      case State::kTag: read_tag(c); break;
      case State::kValue: read_value(c); break;
      case State::kDone: break;
    }
  }

  void end() override {
    if (call_open()) end_call(false);
  }

 private:
  enum class State { kBetween, kTag, kValue, kDone };
  enum class Type { kUnknown, kText, kOther };  // of an argument, as the tool's schema declares it

  void read_between(char c) {
    static constexpr std::string_view kMarkers[] = {"<｜DSML｜", "</｜DSML｜"};
    if (scanner_.read(c, kMarkers) != MarkerScanner::Found::kMarker) return;
    closing_ = scanner_.index() == 1;
    in_quotes_ = false;
    tag_.clear();
    state_ = State::kTag;
  }

  void read_tag(char c) {
    if (c == '"') in_quotes_ = !in_quotes_;
    if (c == '>' && !in_quotes_) {
      state_ = State::kBetween;
      found_tag();
    } else {
      tag_ += c;
    }
  }

  void found_tag() {
    const std::string_view name = std::string_view(tag_).substr(0, tag_.find_first_of(" \t\r\n"));
    const bool is_block = name == "tool_calls" || name == "function_calls";
    if (closing_) {
      if ((is_block || name == "invoke") && call_open()) {
        give_arguments(n_arguments_ == 0 ? "{}" : "}");
        end_call(true);
      }
      // V4 writes one block; V3.2's parser goes on to the next.
      if (name == "tool_calls") state_ = State::kDone;
      in_block_ = in_block_ && !is_block;
    } else if (is_block) {
      in_block_ = true;
    } else if (name == "invoke") {
      if (call_open()) end_call(false);
      const std::optional<std::string> called = attribute("name");
      if (called && !called->empty()) start_call(*called);
      n_arguments_ = 0;
    } else if (name == "parameter" && call_open()) {
      begin_value();
    } else if (!in_block_ && !call_open()) {
      state_ = State::kDone;  // no block of calls; markup is not shown all the same
    }
  }

  /// KEY="VALUE" in the tag.
  std::optional<std::string> attribute(std::string_view key) const {
    const std::string needle = " " + std::string(key) + "=\"";
    const size_t at = tag_.find(needle);
    if (at == std::string::npos) return {};
    const size_t begin = at + needle.size();
    return tag_.substr(begin, tag_.find('"', begin) - begin);
  }

  void begin_value() {
    const std::string key = attribute("name").value_or("");
    const std::optional<std::string> marked = attribute("string");
    type_ = declared_type(key);
    if (type_ == Type::kUnknown && marked) type_ = *marked == "true" ? Type::kText : Type::kUnknown;
    // A text that is declared and marked as one can be handed on as it comes; all else is judged when it is whole.
    streams_ = type_ == Type::kText && (!marked || *marked == "true");
    std::string head = n_arguments_++ == 0 ? "{\"" : ", \"";
    append_json_escaped(head, key);
    head += streams_ ? "\": \"" : "\": ";
    give_arguments(head);
    value_.clear();
    state_ = State::kValue;
  }

  Type declared_type(const std::string& key) const {
    for (const ChatTool& tool : tools_) {
      if (tool.name != calls().back().name) continue;
      const auto properties = tool.parameters.find("properties");
      if (properties == tool.parameters.end() || !properties->is_object()) break;
      const auto property = properties->find(key);
      if (property == properties->end() || !property->is_object()) break;
      const auto type = property->find("type");
      if (type == property->end() || !type->is_string()) break;
      return type->get_ref<const std::string&>() == "string" ? Type::kText : Type::kOther;
    }
    return Type::kUnknown;
  }

  void read_value(char c) {
    static constexpr std::string_view kMarkers[] = {"</｜DSML｜parameter>"};
    switch (scanner_.read(c, kMarkers)) {
      case MarkerScanner::Found::kHeld: break;
      case MarkerScanner::Found::kText:
        if (streams_)
          give_escaped(scanner_.text());
        else
          value_ += scanner_.text();
        break;
      case MarkerScanner::Found::kMarker:
        if (streams_)
          give_arguments("\"");
        else
          give_value();
        state_ = State::kBetween;
    }
  }

  void give_escaped(std::string_view text) {
    std::string escaped;
    append_json_escaped(escaped, text);
    give_arguments(escaped);
  }

  /// What is not the JSON that it should be is handed on as a text: the tool sees it, and the arguments stay JSON.
  void give_value() {
    const std::string_view json = trimmed(value_);
    const bool must_be_text = type_ == Type::kText && !json.starts_with('"');
    if (!json.empty() && !must_be_text && ChatJson::accept(json)) {
      give_arguments(json);
    } else {
      give_arguments("\"");
      give_escaped(value_);
      give_arguments("\"");
    }
  }

  const std::vector<ChatTool> tools_;
  State state_ = State::kBetween;
  MarkerScanner scanner_;
  std::string tag_;
  bool closing_ = false, in_quotes_ = false, in_block_ = false;
  size_t n_arguments_ = 0;
  Type type_ = Type::kUnknown;
  bool streams_ = false;
  std::string value_;
};

}  // namespace

namespace call_parsers {
std::unique_ptr<CallParser> make_dsml_parser(std::vector<ChatTool> tools) {
  return std::make_unique<DsmlCallParser>(std::move(tools));
}
}  // namespace call_parsers

}  // namespace fathom
