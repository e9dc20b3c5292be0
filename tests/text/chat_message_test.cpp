#include "text/chat_message.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "text/chat_text.h"

using namespace fathom;

namespace {

void check_refused(const std::string& json, const char* field) {
  CAPTURE(json);
  try {
    read_chat_conversation(parse_chat_json(json, "messages"));
    FAIL_CHECK("accepted");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kUsage);
    CHECK(std::string(e.what()).find(field) == 0);
  }
}

}  // namespace

TEST_CASE("what is not a conversation is refused, naming the field") {
  for (const char* json : {"null", "\"hi\"", "7"}) check_refused(json, "conversation");
  check_refused("[]", "messages: empty");
  check_refused("{}", "messages");
  check_refused(R"({"messages": {}})", "messages");
  check_refused("[123]", "messages[0]");
  check_refused("[{}]", "messages[0].role");
  check_refused(R"([{"role": 123, "content": "x"}])", "messages[0].role");
  check_refused(R"([{"role": "wizard", "content": "x"}])", "messages[0].role");
  check_refused(R"([{"role": "user", "content": 123}])", "messages[0].content");
  check_refused(R"([{"role": "user"}])", "messages[0].content");
  check_refused(R"([{"role": "user", "content": null}])", "messages[0].content");
  check_refused(R"([{"role": "user", "content": [{"type": "image_url"}]}])", "messages[0].content[0].type");
  check_refused(R"([{"role": "user", "content": [{"type": "text", "text": 1}]}])", "messages[0].content[0].text");
  check_refused(R"([{"role": "user", "content": ["x"]}])", "messages[0].content[0]");
  check_refused(R"([{"role": "assistant", "content": "x", "prefix": true}, {"role": "user", "content": "x"}])",
                "messages[0].prefix");
  check_refused(R"([{"role": "user", "content": "x", "prefix": true}])", "messages[0].prefix");
  check_refused(R"([{"role": "assistant", "content": "x", "prefix": "yes"}])", "messages[0].prefix");
  check_refused(R"([{"role": "user", "content": "x", "task": "poem"}])", "messages[0].task");
  check_refused(R"([{"role": "user", "content": "x", "task": "title"}, {"role": "user", "content": "x"}])",
                "messages[0].task");
  check_refused(R"([{"role": "system", "content": "x", "task": "title"}])", "messages[0].task");
  check_refused(R"([{"role": "assistant", "content": "x", "reasoning_content": 3}])", "messages[0].reasoning_content");
  check_refused(R"([{"role": "assistant", "tool_calls": {}}])", "messages[0].tool_calls");
  check_refused(R"([{"role": "assistant", "tool_calls": [{"id": "a"}]}])", "messages[0].tool_calls[0].function");
  check_refused(R"([{"role": "assistant", "tool_calls": [{"function": {"name": "", "arguments": ""}}]}])",
                "messages[0].tool_calls[0].function.name");
  check_refused(R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}])",
                "messages[0].tool_calls[0].function.arguments");
  check_refused(R"([{"role": "user", "content": "x"}] trailing)", "messages: not JSON");
  check_refused("[{\"role\": \"user\", \"content\": \"\xff\"}]", "messages: not JSON");
}

TEST_CASE("tools and options are refused, naming the field") {
  const auto tools = [](const std::string& list) {
    return R"({"messages": [{"role": "user", "content": "x"}], "tools": )" + list + "}";
  };
  check_refused(tools("{}"), "tools");
  check_refused(tools("[1]"), "tools[0]");
  check_refused(tools(R"([{"type": "web_search"}])"), "tools[0].type");
  check_refused(tools(R"([{"type": "function", "function": {}}])"), "tools[0].function.name");
  check_refused(tools(R"([{"type": "function", "function": {"name": ""}}])"), "tools[0].function.name");
  check_refused(tools(R"([{"type": "function", "function": {"name": "a\"b"}}])"), "tools[0].function.name");
  check_refused(tools(R"([{"type": "function", "function": {"name": "f", "parameters": []}}])"),
                "tools[0].function.parameters");
  std::string many = "[";
  for (int i = 0; i < 10000; ++i) many += std::string(i > 0 ? "," : "") + R"({"function": {"name": "f"}})";
  check_refused(tools(many + "]"), "tools: too many");
  const auto options = [](const std::string& object) {
    return R"({"messages": [{"role": "user", "content": "x"}], "options": )" + object + "}";
  };
  check_refused(options("[]"), "options");
  check_refused(options(R"({"thinking": "true"})"), "options.thinking");
  check_refused(options(R"({"add_generation_prompt": 1})"), "options.add_generation_prompt");
  check_refused(options(R"({"effort": "heroic"})"), "options.effort");
  check_refused(options(R"({"response_schema": "x"})"), "options.response_schema");
}

TEST_CASE("nesting and members are limited") {
  check_refused(std::string(1000000, '['), "messages: nested too deep");
  std::string wide = "{";
  for (int i = 0; i < 5000; ++i) wide += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":0";
  check_refused(wide + "}", "messages: too many members");
  ChatJson deep;
  for (int i = 0; i < 200; ++i) deep = ChatJson::array({deep});
  CHECK_THROWS_AS(to_chat_json(deep), Error);
}

TEST_CASE("lists of texts, absent fields and objects as arguments are understood") {
  const ChatConversation c = read_chat_conversation(parse_chat_json(
      R"([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
          {"role": "assistant", "content": null, "reasoning_content": null, "tool_calls": [{"id": "i", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [2]}}}]},
          {"role": "tool", "content": "r"}])",
      "messages"));
  CHECK(c.messages[0].content == "a\nb");
  CHECK(c.messages[1].tool_calls[0].arguments == R"({"z": 1, "a": [2]})");
  CHECK(c.messages[2].tool_call_id.empty());
  CHECK(c.options.add_generation_prompt);
  CHECK_FALSE(c.options.thinking.has_value());
}

TEST_CASE("JSON is written with the spaces and escapes of the training data") {
  const char* text =
      R"({"b": [1, 2.5, null, true], "a": {"é\"\\\n": "\u0001/東"}, "e": [], "o": {}, "n": -3, "big": 18446744073709551615})";
  CHECK(
      to_chat_json(parse_chat_json(text, "x")) ==
      R"({"b": [1, 2.5, null, true], "a": {"é\"\\\n": "\u0001/東"}, "e": [], "o": {}, "n": -3, "big": 18446744073709551615})");
}
