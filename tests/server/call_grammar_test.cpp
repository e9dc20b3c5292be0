#include "server/call_grammar.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "text/chat_parser.h"

using namespace fathom;

namespace {

constexpr int32_t kDsmlToken = 256;

/// A vocabulary of all bytes; token 256 is a marker, no text.
std::shared_ptr<const TokenTrie> all_bytes() {
  static std::vector<std::string> texts;
  if (texts.empty()) {
    for (int b = 0; b < 256; ++b) texts.emplace_back(1, static_cast<char>(b));
  }
  std::vector<TokenTrie::Token> tokens;
  for (size_t i = 0; i < texts.size(); ++i) tokens.push_back({texts[i], static_cast<int32_t>(i)});
  return std::make_shared<TokenTrie>(std::move(tokens), texts.size() + 1);
}

std::vector<ChatTool> tools_of(const std::string& functions) {
  ChatJson list = ChatJson::array();
  for (const ChatJson& function : ChatJson::parse(functions))
    list.push_back({{"type", "function"}, {"function", function}});
  return read_chat_tools(list);
}

/// Whether the grammar takes `text` as the whole rest of the call. ｜DSML｜ is a token in V4, spelled in V3.2.
bool fits(ChatGeneration generation, const std::string& functions, const std::string& text) {
  const std::vector<ChatTool> tools = tools_of(functions);
  const bool is_token = generation == ChatGeneration::kV4;
  const auto token_of = [&](std::string_view marker) {
    return is_token && marker == "｜DSML｜" ? std::optional(kDsmlToken) : std::nullopt;
  };
  GrammarMatcher matcher(make_call_grammar(open_call(generation, ""), nullptr, tools, token_of), all_bytes());
  for (size_t i = 0; i < text.size(); ++i) {
    if (is_token && std::string_view(text).substr(i).starts_with("｜DSML｜")) {
      if (!matcher.accept(kDsmlToken, "｜DSML｜")) return false;
      i += std::string_view("｜DSML｜").size() - 1;
    } else if (!matcher.accept(static_cast<uint8_t>(text[i]), std::string_view(&text[i], 1))) {
      return false;
    }
  }
  return matcher.may_end();
}

std::string text_argument(const std::string& name, const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"true\">" + value + "</｜DSML｜parameter>\n";
}
std::string json_argument(const std::string& name, const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"false\">" + value + "</｜DSML｜parameter>\n";
}
std::string call_of(ChatGeneration generation, const std::string& name, const std::string& arguments) {
  return name + "\">\n" + arguments + "</｜DSML｜invoke>\n</｜DSML｜" +
         (generation == ChatGeneration::kV4 ? "tool_calls>" : "function_calls>");
}

constexpr const char* kTools = R"([{"name": "weather", "parameters": {"type": "object", "required": ["city", "days"],
    "properties": {"city": {"type": "string", "description": "where"}, "days": {"type": "integer"},
                   "unit": {"enum": ["C", "F"]}, "code": {"type": "string", "maxLength": 2}, "at": {"$ref": "#/$defs/place"}},
    "$defs": {"place": {"type": "array", "items": {"type": "number"}}}}},
  {"name": "free"}])";

}  // namespace

TEST_CASE("arguments in elements fit the schema: its order, its kinds, texts as they are") {
  for (const ChatGeneration generation : {ChatGeneration::kV32, ChatGeneration::kV4}) {
    CAPTURE(name_of(generation));
    const auto takes = [&](const std::string& arguments) {
      return fits(generation, kTools, call_of(generation, "weather", arguments));
    };
    const std::string rome = text_argument("city", "Rome"), days = json_argument("days", "3");
    CHECK(takes(rome + days));
    CHECK(takes(rome + days + text_argument("unit", "F")));
    CHECK(takes(rome + days + json_argument("code", "\"it\"")));
    CHECK(takes(rome + days + json_argument("at", "[41.9, 12.5]")));
    CHECK(takes(text_argument("city", "") + days));
    CHECK(takes(text_argument("city", "a <b>\"x\"</b> & </parameter>\n</") + days));
    CHECK(takes(text_argument("city", "日本<<</") + days));
    CHECK_FALSE(takes(rome));
    CHECK_FALSE(takes(days + rome));
    CHECK_FALSE(takes(rome + json_argument("days", "three")));
    CHECK_FALSE(takes(rome + text_argument("days", "3")));
    CHECK_FALSE(takes(json_argument("city", "\"Rome\"") + days));
    CHECK_FALSE(takes(rome + days + text_argument("unit", "K")));
    CHECK_FALSE(takes(rome + days + json_argument("code", "\"ita\"")));
    CHECK_FALSE(takes(rome + days + text_argument("more", "x")));
    CHECK_FALSE(takes(text_argument("city", "Rome</｜DSML｜parameter>\nx") + days));
    CHECK_FALSE(fits(generation, kTools, call_of(generation, "none", "")));
  }
}

TEST_CASE("a tool without a schema takes any elements") {
  for (const ChatGeneration generation : {ChatGeneration::kV32, ChatGeneration::kV4}) {
    CAPTURE(name_of(generation));
    for (const std::string& arguments :
         {std::string(), text_argument("a", "x"), json_argument("b-2", R"({"c": [1]})") + text_argument("a", "<y>")})
      CHECK(fits(generation, kTools, call_of(generation, "free", arguments)));
    CHECK_FALSE(fits(generation, kTools, call_of(generation, "free", json_argument("a", "{"))));
    CHECK_FALSE(fits(generation, kTools, call_of(generation, "free", "text")));
  }
}

TEST_CASE("what the grammar takes is read back as a whole call with those arguments") {
  const std::string rest = call_of(ChatGeneration::kV4, "weather",
                                   text_argument("city", "St. \"X\"\n</x>") + json_argument("days", "3") +
                                       text_argument("unit", "C") + json_argument("code", "\"it\""));
  REQUIRE(fits(ChatGeneration::kV4, kTools, rest));
  ChatParser parser(ChatGeneration::kV4,
                    {.starts_in_reasoning = false, .parse_calls = true, .tools = tools_of(kTools)});
  std::string opening;
  for (const PromptPart& part : open_call(ChatGeneration::kV4, "").opening) opening += part.text;
  parser.feed(opening);
  parser.feed(rest);
  parser.finish("stop");
  const ParsedChat got = parser.result();
  REQUIRE(got.tool_calls.size() == 1);
  CHECK(got.tool_calls[0].complete);
  CHECK(got.tool_calls[0].name == "weather");
  const ChatJson want = {{"city", "St. \"X\"\n</x>"}, {"days", 3}, {"unit", "C"}, {"code", "it"}};
  CHECK(ChatJson::parse(got.tool_calls[0].arguments) == want);
}

TEST_CASE("a schema that cannot be kept to is refused where the tool is strict, and else taken as any") {
  const auto tool = [](const char* strict) {
    return std::string(R"([{"name": "f", "strict": )") + strict +
           R"(, "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "x+"}}}}])";
  };
  CHECK_THROWS_WITH_AS(fits(ChatGeneration::kV4, tool("true"), ""), doctest::Contains("pattern"), Error);
  CHECK(fits(ChatGeneration::kV4, tool("false"), call_of(ChatGeneration::kV4, "f", text_argument("a", "y"))));
}

TEST_CASE("arguments in JSON fit the schema") {
  const std::vector<ChatTool> tools = tools_of(kTools);
  const ForcedCall call = open_call(ChatGeneration::kV31, "weather");
  const auto takes = [&](const std::string& arguments) {
    GrammarMatcher matcher(make_call_grammar(call, &tools[0], tools, [](std::string_view) { return std::nullopt; }),
                           all_bytes());
    std::string text = arguments;
    for (const PromptPart& part : call.closing) text += part.text;
    for (const char c : text) {
      if (!matcher.accept(static_cast<uint8_t>(c), std::string_view(&c, 1))) return false;
    }
    return matcher.may_end();
  };
  CHECK(takes(R"({"city": "Rome", "days": 3})"));
  CHECK_FALSE(takes(R"({"city": "Rome"})"));
}
