#include "main/chat_session.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "main/history.h"

using namespace fathom;

namespace {

ChatSession two_turns() {
  ChatSession session;
  session.system = "Be brief.";
  session.ask("One?");
  ParsedChat answer;
  answer.reasoning_content = "Hm.";
  answer.content = "Two.";
  session.answer(answer);
  return session;
}

}  // namespace

TEST_CASE("a session written and read again is the same") {
  const ChatSession session = two_turns();
  const ChatSession again = ChatSession::from_json(session.to_json("model"), "test");
  CHECK(again.system == "Be brief.");
  REQUIRE(again.turns().size() == 2);
  CHECK(again.turns()[1].content == "Two.");
  CHECK(again.turns()[1].reasoning_content == "Hm.");
  CHECK(again.to_json("model") == session.to_json("model"));
}

TEST_CASE("empty sessions and bare lists of messages can be read, other things cannot") {
  CHECK(ChatSession::from_json(ChatSession().to_json("model"), "test").empty());
  CHECK(ChatSession::from_json(R"([{"role":"user","content":"x"}])", "test").turns().size() == 1);
  for (const char* text : {"", "{", "{}", "3", R"({"messages":3})", R"({"fathom_session":2,"messages":[]})",
                           R"([{"role":"wizard","content":"x"}])"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(ChatSession::from_json(text, "test"), Error);
  }
}

TEST_CASE("undo takes the last question and its answer") {
  ChatSession session = two_turns();
  CHECK(session.undo() == "One?");
  CHECK(session.empty());
  CHECK_FALSE(session.undo().has_value());
}

TEST_CASE("settings refuse what the sampler would and stay as they were") {
  ChatSettings settings;
  settings.set("temp", "0.25", 100);
  CHECK(settings.sampling.temperature == 0.25F);
  CHECK_THROWS_AS(settings.set("temp", "-1", 100), Error);
  CHECK_THROWS_AS(settings.set("temp", "hot", 100), Error);
  CHECK_THROWS_AS(settings.set("warmth", "1", 100), Error);
  CHECK_THROWS_AS(settings.set("max-tokens", "-1", 100), Error);
  CHECK(settings.sampling.temperature == 0.25F);
}

TEST_CASE("history finds older entries, drops repeats and what is too long") {
  History history("");
  history.add("first line");
  history.add("second");
  history.add("second");
  history.add("");
  history.add(std::string(History::kMaxEntryBytes + 1, 'x'));
  REQUIRE(history.size() == 2);
  CHECK(history.search_back("line", history.size()) == 0);
  CHECK(history.search_back("line", 0) == history.size());
  for (size_t i = 0; i < 2 * History::kMaxEntries; ++i) history.add(std::to_string(i));
  CHECK(history.size() == History::kMaxEntries);
}
