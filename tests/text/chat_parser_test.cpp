#include "text/chat_parser.h"

#include <doctest/doctest.h>

#include <fstream>
#include <random>

#include "text/chat_text.h"

using namespace fathom;

namespace {

ChatJson fixture(const std::string& name) {
  std::ifstream in(std::string(FATHOM_FIXTURES) + "/chat/" + name);
  REQUIRE_MESSAGE(in.good(), name);
  return ChatJson::parse(in);
}

constexpr ChatGeneration kParsed[] = {ChatGeneration::kV3, ChatGeneration::kR1, ChatGeneration::kV31,
                                      ChatGeneration::kV32, ChatGeneration::kV4};

/// Feeds pieces of the given byte lengths and checks what any moment shows against the end.
ParsedChat parse(ChatGeneration generation, ChatParserOptions options, std::string_view text,
                 const std::vector<size_t>& cuts, std::string_view finish) {
  ChatParser parser(generation, std::move(options));
  std::vector<ChatEvent> events;
  const auto keep = [&](std::vector<ChatEvent> more) {
    for (const ChatEvent& event : more) CHECK(to_valid_utf8(event.text) == event.text);
    events.insert(events.end(), more.begin(), more.end());
  };
  size_t at = 0;
  for (const size_t cut : cuts) {
    keep(parser.feed(text.substr(at, cut)));
    at = std::min(text.size(), at + cut);
  }
  keep(parser.feed(text.substr(at)));
  keep(parser.finish(finish));
  // The events say what the result says; being appended only, what they said before is a prefix of it.
  std::string reasoning, content;
  std::vector<ParsedCall> calls;
  size_t n_open = 0;
  for (const ChatEvent& event : events) {
    switch (event.kind) {
      case ChatEvent::Kind::kReasoning: reasoning += event.text; break;
      case ChatEvent::Kind::kContent: content += event.text; break;
      case ChatEvent::Kind::kCallStart:
        CHECK(event.call_idx == calls.size());
        calls.push_back({event.text, "", false});
        ++n_open;
        break;
      case ChatEvent::Kind::kCallArguments: calls.at(event.call_idx).arguments += event.text; break;
      case ChatEvent::Kind::kCallEnd:
        calls.at(event.call_idx).complete = event.complete;
        --n_open;
        break;
    }
  }
  const ParsedChat& result = parser.result();
  CHECK(n_open == 0);
  CHECK(reasoning == result.reasoning_content);
  CHECK(content == result.content);
  REQUIRE(calls.size() == result.tool_calls.size());
  for (size_t i = 0; i < calls.size(); ++i) {
    CHECK(calls[i].name == result.tool_calls[i].name);
    CHECK(calls[i].arguments == result.tool_calls[i].arguments);
    CHECK(calls[i].complete == result.tool_calls[i].complete);
    if (calls[i].complete) CHECK(ChatJson::accept(calls[i].arguments));
  }
  return result;
}

std::vector<std::vector<size_t>> ways_to_cut(std::string_view text, unsigned seed) {
  std::vector<std::vector<size_t>> ways = {{},
                                           std::vector<size_t>(text.size(), 1),
                                           std::vector<size_t>(text.size() / 2, 2),
                                           std::vector<size_t>(text.size() / 7, 7)};
  std::mt19937 random(seed);
  for (int way = 0; way < 8; ++way) {
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); at += cuts.back()) cuts.push_back(random() % (way < 4 ? 5 : 40));
    ways.push_back(std::move(cuts));
  }
  return ways;
}

ParsedChat whole(ChatGeneration generation, std::string_view text, bool starts_in_reasoning = false,
                 std::vector<ChatTool> tools = {}) {
  ParsedChat result;
  std::string first;
  for (const auto& cuts : ways_to_cut(text, 7)) {
    result = parse(generation, {starts_in_reasoning, true, tools}, text, cuts, "stop");
    if (first.empty()) first = result.to_json().dump();
    CHECK(result.to_json().dump() == first);
  }
  return result;
}

const std::string kOpen = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n";
const std::string kClose = "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
std::string parameter(const std::string& key, const std::string& attribute, const std::string& value) {
  return "<｜DSML｜parameter name=\"" + key + "\"" + attribute + ">" + value + "</｜DSML｜parameter>\n";
}

}  // namespace

TEST_CASE("every recorded output is parsed like the reference, however it is cut") {
  for (const ChatGeneration generation : kParsed) {
    const ChatJson file = fixture("parse_" + std::string(name_of(generation)) + ".json");
    REQUIRE(file["cases"].size() > 10);
    unsigned seed = 0;
    for (const ChatJson& c : file["cases"]) {
      const std::string text = c["text"];
      const bool json = !c.value("arguments_not_json", false);
      std::string first;
      for (const auto& cuts : ways_to_cut(text, ++seed)) {
        CAPTURE(c["id"].get<std::string>());
        CAPTURE(seed);
        const ParsedChat got = parse(generation, {c["options"]["starts_in_reasoning"], c["options"]["tools"], {}}, text,
                                     cuts, c["options"]["finish"].get<std::string>());
        CHECK(got.reasoning_content == c["reasoning_content"].get<std::string>());
        CHECK(got.content == c["content"].get<std::string>());
        const ChatJson shown = got.to_json();
        if (json) {
          CHECK(shown["tool_calls"].dump() == c["tool_calls"].dump());
          CHECK(got.finish_reason == c["finish_reason"].get<std::string>());
        } else {
          for (const ChatJson& call : shown["tool_calls"])
            CHECK(ChatJson::parse(call["arguments"].get<std::string>()).is_object());
        }
        if (first.empty()) first = shown.dump();
        CHECK(shown.dump() == first);
      }
    }
  }
}

TEST_CASE("parse_json takes the cut in characters and answers on one line") {
  const ChatJson request = {{"text", "a🌷\n</think>\n\nb\n"},
                            {"options", {{"starts_in_reasoning", true}, {"finish", "length"}}},
                            {"cut", {1, 1, 3, 0, 100}}};
  CHECK(parse_json(ChatGeneration::kV31, request.dump()) ==
        R"({"reasoning_content": "a🌷", "content": "b\n", "tool_calls": [], "finish_reason": "length"})");
  CHECK(parse_json(ChatGeneration::kV3, R"({"text": ""})") ==
        R"({"reasoning_content": "", "content": "", "tool_calls": [], "finish_reason": "stop"})");
}

TEST_CASE("R1-0528 opens its reasoning itself; other models do not without the prompt's tag") {
  const std::string text = "\n<think>\nwhy\n</think>\n\nbecause";
  CHECK(whole(ChatGeneration::kR1_0528, text).reasoning_content == "why");
  CHECK(whole(ChatGeneration::kR1_0528, text).content == "because");
  CHECK(whole(ChatGeneration::kR1_0528, "a <think>b").content == "a <think>b");
  CHECK(whole(ChatGeneration::kV3, text).content == text);
  CHECK(whole(ChatGeneration::kV2, text).content == text);
}

TEST_CASE("v2 has no calls: their markup is text") {
  const std::string text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>";
  CHECK(whole(ChatGeneration::kV2, text).content == text);
}

TEST_CASE("a call cut off by the limit is not a complete call") {
  for (const std::string& value : {std::string("\"true\">half"), std::string("\"false\">[1,"), std::string("\"fa")}) {
    const std::string text = "hm " + kOpen + "<｜DSML｜parameter name=\"k\" string=" + value;
    const ParsedChat got = parse(ChatGeneration::kV4, {}, text, {}, "length");
    CHECK(got.content == "hm ");
    REQUIRE(got.tool_calls.size() == 1);
    CHECK_FALSE(got.tool_calls[0].complete);
    CHECK(got.to_json()["tool_calls"].empty());
    CHECK(got.to_json()["incomplete_tool_calls"].size() == 1);
    CHECK(got.finish_reason == "length");
  }
}

TEST_CASE("DSML arguments take the type of the tool's schema where the value allows it") {
  ChatTool tool;
  tool.name = "f";
  tool.parameters = ChatJson::parse(
      R"({"properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}, "u": {"type": ["string", "null"]}}})");
  const auto arguments = [&](const std::string& inner) {
    const ParsedChat got = whole(ChatGeneration::kV4, kOpen + inner + kClose, false, {tool});
    REQUIRE(got.tool_calls.size() == 1);
    CHECK(got.tool_calls[0].complete);
    return got.tool_calls[0].arguments;
  };
  CHECK(arguments(parameter("n", " string=\"true\"", "12")) == R"({"n": 12})");
  CHECK(arguments(parameter("n", " string=\"true\"", "twelve")) == R"({"n": "twelve"})");
  CHECK(arguments(parameter("s", " string=\"false\"", "12")) == R"({"s": "12"})");
  CHECK(arguments(parameter("s", " string=\"false\"", "\"12\"")) == R"({"s": "12"})");
  CHECK(arguments(parameter("s", "", "true")) == R"({"s": "true"})");
  CHECK(arguments(parameter("o", " string=\"true\"", "{\"a\": [1]}")) == R"({"o": {"a": [1]}})");
  CHECK(arguments(parameter("u", " string=\"false\"", "null")) == R"({"u": null})");
  CHECK(arguments(parameter("x", " string=\"true\"", "a\"b\\\x01\n")) == R"({"x": "a\"b\\\u0001\n"})");
  CHECK(arguments("") == "{}");
}

TEST_CASE("values that are not the JSON they claim to be become texts") {
  const ParsedChat got =
      whole(ChatGeneration::kV4, kOpen + parameter("k", " string=\"false\"", "[1, ") + parameter("l", "", "Göteborg") +
                                     parameter("m", "", " 2 ") + kClose);
  REQUIRE(got.tool_calls.size() == 1);
  CHECK(got.tool_calls[0].arguments == R"({"k": "[1, ", "l": "Göteborg", "m": 2})");
  CHECK(got.finish_reason == "tool_calls");
}

TEST_CASE("a long text argument comes while it is written") {
  ChatParser parser(ChatGeneration::kV4, {});
  parser.feed(kOpen + "<｜DSML｜parameter name=\"k\" string=\"true\">");
  const auto events = parser.feed("line one\nline");
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == ChatEvent::Kind::kCallArguments);
  CHECK(events[0].text == "line one\\nline");
}

TEST_CASE("an invoke without a block is still a call, and two open ones are two") {
  const ParsedChat got =
      whole(ChatGeneration::kV4, "<｜DSML｜invoke name=\"a\">\n<｜DSML｜invoke name=\"b\">\n</｜DSML｜invoke>");
  REQUIRE(got.tool_calls.size() == 2);
  CHECK_FALSE(got.tool_calls[0].complete);
  CHECK(got.tool_calls[1].complete);
  CHECK(got.tool_calls[1].arguments == "{}");
}

TEST_CASE("a fenced call without arguments is complete, with an empty fence or none") {
  for (const std::string inner : {"f", "f\n```json\n\n```", "f\n"}) {
    const std::string text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>" + inner +
                             "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    const ParsedChat got = whole(ChatGeneration::kR1, text);
    CAPTURE(inner);
    REQUIRE(got.tool_calls.size() == 1);
    CHECK(got.tool_calls[0].name == "f");
    CHECK(got.tool_calls[0].arguments == "{}");
    CHECK(got.tool_calls[0].complete);
  }
}

TEST_CASE("bytes that are not UTF-8 become U+FFFD, in text and in arguments") {
  const ParsedChat got =
      whole(ChatGeneration::kV4, "a\xff\xe4\xb8 b" + kOpen + parameter("k", " string=\"true\"", "\xc3") + kClose);
  CHECK(got.content == "a\uFFFD\uFFFD b");
  CHECK(got.tool_calls.at(0).arguments == "{\"k\": \"\uFFFD\"}");
}

TEST_CASE("crafted text of megabytes is read in one pass") {
  const size_t n = 2'000'000;
  std::string almost, opened = kOpen + "<｜DSML｜parameter name=\"";
  while (almost.size() < n) almost += "<｜DSML</thin<";
  for (const bool reasoning : {false, true}) {
    for (const std::string& text : {std::string(n, '<'), std::string(n, '\n'), almost, opened + std::string(n, 'Z'),
                                    kOpen + "<｜DSML｜parameter name=\"k\" string=\"true\">" + almost}) {
      ChatParser parser(ChatGeneration::kV4, {reasoning, true, {}});
      for (size_t i = 0; i < text.size(); ++i) parser.feed(std::string_view(text).substr(i, 1));
      parser.finish("length");
      CHECK(parser.result().finish_reason == "length");
    }
  }
  std::string deep = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>" + std::string(n, '[');
  ChatParser parser(ChatGeneration::kV31, {});
  parser.feed(deep);
  parser.finish("length");
  CHECK_FALSE(parser.result().tool_calls.at(0).complete);
}
