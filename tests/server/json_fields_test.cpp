#include "server/json_fields.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "server/api.h"
#include "server/event_stream.h"
#include "server/metrics.h"
#include "server/replay_store.h"

using namespace fathom;

namespace {

std::optional<int64_t> integer_of(const char* json, int64_t lowest = 0, int64_t highest = 100) {
  const ChatJson value = ChatJson::parse(json);
  try {
    return Fields(value, "").integer("a", lowest, highest);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUsage);
    CHECK(std::string(error.what()).starts_with("a: "));
    return -77;
  }
}

}  // namespace

TEST_CASE("one reader takes whole numbers in range and nothing else") {
  CHECK(integer_of(R"({"a": 5})") == 5);
  CHECK(integer_of(R"({"a": 5.0})") == 5);
  CHECK(integer_of(R"({"a": null})") == std::nullopt);
  CHECK(integer_of("{}") == std::nullopt);
  for (const char* bad :
       {R"({"a": -1})", R"({"a": 101})", R"({"a": 1.5})", R"({"a": "5"})", R"({"a": true})", R"({"a": 1e300})",
        R"({"a": 18446744073709551615})", R"({"a": 9223372036854775808})", R"({"a": [1]})"}) {
    CAPTURE(bad);
    CHECK(integer_of(bad) == -77);
  }
  CHECK(integer_of(R"({"a": -9223372036854775808})", INT64_MIN, INT64_MAX) == INT64_MIN);
}

TEST_CASE("bodies are JSON without extras") {
  CHECK(parse_body("{\"a\": 1}").at("a") == 1);
  for (const std::string& bad : {std::string(), std::string("{"), std::string("{} x"), std::string("\xEF\xBB\xBF{}"),
                                 std::string("\"\xC4\""), std::string(200, '[')})
    CHECK_THROWS_AS(parse_body(bad), Error);
}

TEST_CASE("what is no UTF-8 or no number is written all the same") {
  CHECK(dump_json(ChatJson("a\xC4")) == "\"a\xEF\xBF\xBD\"");
  CHECK(dump_json(ChatJson(std::numeric_limits<double>::quiet_NaN())) == "null");
}

TEST_CASE("an event has a data line for each line of its data") {
  CHECK(format_event("", "{}") == "data: {}\n\n");
  CHECK(format_event("ping", "a\nb") == "event: ping\ndata: a\ndata: b\n\n");
}

TEST_CASE("comments come by the clock, and nothing after a write failed") {
  std::string written;
  bool works = true;
  SteadyClock::time_point now{};
  EventStream stream([&](std::string_view bytes) { return written += bytes, works; }, std::chrono::seconds(5),
                     [&] { return now; });
  stream.tick();
  now += std::chrono::seconds(5);
  stream.tick();
  stream.tick();
  CHECK(written == ": keep-alive\n\n");
  works = false;
  stream.raw("x");
  CHECK(stream.broken());
  const size_t size = written.size();
  stream.raw("y");
  CHECK(written.size() == size);
}

TEST_CASE("secrets are equal only as wholes") {
  CHECK(same_secret("abc", "abc"));
  CHECK_FALSE(same_secret("ab", "abc"));
  CHECK_FALSE(same_secret("abcabc", "abc"));
  CHECK_FALSE(same_secret("", "abc"));
  CHECK_FALSE(same_secret("abc", ""));
}

TEST_CASE("host names lose port, brackets and case") {
  CHECK(host_name("LocalHost:80") == "localhost");
  CHECK(host_name("[::1]:80") == "::1");
  CHECK(host_name("::1") == "::1");
  CHECK(host_name("a.example.") == "a.example");
  CHECK(host_name("") == "");
}

TEST_CASE("what a client dropped from a tool round is put back") {
  ReplayStore store;
  store.remember({"call_1", "f", "{\"a\": 1, \"b\": 2}"}, "because");
  ChatMessage message;
  message.role = ChatRole::kAssistant;
  message.tool_calls = {{"call_1", "f", "{\"b\":2,\"a\":1}"}};
  std::vector<ChatMessage> messages = {message};
  store.complete(messages);
  CHECK(messages[0].reasoning_content == "because");
  CHECK(messages[0].tool_calls[0].arguments == "{\"a\": 1, \"b\": 2}");
  // Changed arguments and the client's own reasoning stay.
  message.tool_calls[0].arguments = "{\"a\":9}";
  message.reasoning_content = "mine";
  messages = {message};
  store.complete(messages);
  CHECK(messages[0].reasoning_content == "mine");
  CHECK(messages[0].tool_calls[0].arguments == "{\"a\":9}");
}

TEST_CASE("the store of calls stays within its bounds") {
  ReplayStore store({.max_calls = 3, .max_bytes = 1 << 20});
  for (int i = 0; i < 10; ++i) store.remember({"call_" + std::to_string(i), "f", "{}"}, "r");
  const auto reasoning = [&](const std::string& id) {
    std::vector<ChatMessage> messages(1);
    messages[0].role = ChatRole::kAssistant;
    messages[0].tool_calls = {{id, "f", "{}"}};
    store.complete(messages);
    return messages[0].reasoning_content;
  };
  CHECK(reasoning("call_9") == "r");
  CHECK(reasoning("call_6") == "");
  ReplayStore small({.max_calls = 100, .max_bytes = 1000});
  for (int i = 0; i < 100; ++i) small.remember({"call_" + std::to_string(i), "f", std::string(100, 'x')}, "r");
  CHECK(small.bytes() <= 1000);
}

TEST_CASE("histograms are cumulative in Prometheus text") {
  SchedulerStats stats;
  stats.first_token_seconds.add(0.02);
  stats.first_token_seconds.add(1000);
  const std::string text = format_metrics(stats, "a\"b");
  CHECK(text.find("vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.025\"} 1\n") !=
        std::string::npos);
  CHECK(text.find("vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"300\"} 1\n") !=
        std::string::npos);
  CHECK(text.find("vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 2\n") !=
        std::string::npos);
}
