#include "server/replay_store.h"

#include <doctest/doctest.h>

using namespace fathom;

namespace {

ChatToolCall call_of(const std::string& id, const std::string& arguments) {
  ChatToolCall call;
  call.id = id;
  call.name = "weather";
  call.arguments = arguments;
  return call;
}

/// What becomes of an assistant message with one call.
ChatMessage completed(ReplayStore& store, const ChatToolCall& call, const std::string& reasoning = "") {
  std::vector<ChatMessage> messages(1);
  messages[0].tool_calls = {call};
  messages[0].reasoning_content = reasoning;
  store.complete(messages);
  return messages[0];
}

}  // namespace

TEST_CASE("a client that dropped the reasoning and rewrote the arguments gets both back") {
  ReplayStore store;
  store.remember(call_of("call_1", R"({"city": "Rome", "days":2})"), "I should look.");
  const ChatMessage message = completed(store, call_of("call_1", R"({"days": 2, "city": "Rome"})"));
  CHECK(message.reasoning_content == "I should look.");
  CHECK(message.tool_calls[0].arguments == R"({"city": "Rome", "days":2})");
}

TEST_CASE("what a client changed stays changed") {
  ReplayStore store;
  store.remember(call_of("call_1", R"({"city": "Rome"})"), "I should look.");
  const ChatMessage message = completed(store, call_of("call_1", R"({"city": "Oslo"})"), "my own");
  CHECK(message.reasoning_content == "my own");
  CHECK(message.tool_calls[0].arguments == R"({"city": "Oslo"})");
  CHECK(completed(store, call_of("call_1", "no JSON")).tool_calls[0].arguments == "no JSON");
}

TEST_CASE("an id that is unknown, or of another function, changes nothing") {
  ReplayStore store;
  store.remember(call_of("call_1", "{}"), "secret");
  CHECK(completed(store, call_of("call_2", "{}")).reasoning_content.empty());
  ChatToolCall other = call_of("call_1", "{}");
  other.name = "time";
  CHECK(completed(store, other).reasoning_content.empty());
}

TEST_CASE("the store keeps its bounds; what was used last stays longest") {
  ReplayStore store({.max_calls = 2, .max_bytes = 1 << 20});
  store.remember(call_of("a", "{}"), "A");
  store.remember(call_of("b", "{}"), "B");
  completed(store, call_of("a", "{}"));
  store.remember(call_of("c", "{}"), "C");
  CHECK(completed(store, call_of("a", "{}")).reasoning_content == "A");
  CHECK(completed(store, call_of("b", "{}")).reasoning_content.empty());
  CHECK(completed(store, call_of("c", "{}")).reasoning_content == "C");

  ReplayStore small({.max_calls = 1000, .max_bytes = 2000});
  for (int i = 0; i < 100; ++i) small.remember(call_of(std::to_string(i), "{}"), std::string(500, 'x'));
  CHECK(small.bytes() <= 2000);
  CHECK(completed(small, call_of("99", "{}")).reasoning_content.size() == 500);
}
