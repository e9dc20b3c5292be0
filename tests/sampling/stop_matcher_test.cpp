#include "sampling/stop_matcher.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "core/error.h"

namespace {

using namespace fathom;
using Strings = std::vector<std::string>;

/// What a reader sees of `text` at once: up to the stop string that ends first (the longest of those).
struct Expected {
  std::string shown;
  std::optional<size_t> matched;
};

Expected naive(const Strings& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      const bool ends_here =
          stops[i].size() <= end && text.compare(end - stops[i].size(), stops[i].size(), stops[i]) == 0;
      if (ends_here && (!best || stops[i].size() > stops[*best].size())) best = i;
    }
    if (best) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

/// Bytes at the end of `text` that are the beginning of a stop string.
size_t longest_held(const Strings& stops, const std::string& text) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
      if (text.compare(text.size() - n, n, stop, 0, n) == 0) longest = std::max(longest, n);
    }
  }
  return longest;
}

TEST_CASE("a stop string is found across token borders and cut off") {
  StopMatcher m(Strings{"</answer>", "User:"});
  CHECK(m.feed("Hello </ans") == "Hello ");
  CHECK(m.held_bytes() == 5);
  CHECK(m.feed("wers> Us") == "</answers> ");
  CHECK(m.feed("er") == "");
  CHECK_FALSE(m.stopped());
  CHECK(m.feed(": more") == "");
  CHECK(m.stopped());
  CHECK(m.matched() == 1u);
  CHECK(m.feed("later") == "");
  CHECK(m.flush() == "");
}

TEST_CASE("what was held back comes out at the end") {
  StopMatcher m(Strings{"abc"});
  CHECK(m.feed("xab") == "x");
  CHECK(m.flush() == "ab");
  CHECK(m.held_bytes() == 0);
  CHECK_FALSE(m.stopped());
}

TEST_CASE("without stop strings everything passes at once") {
  StopMatcher m(Strings{});
  CHECK(m.feed("anything") == "anything");
  CHECK(m.feed("") == "");
  CHECK_FALSE(m.stopped());
}

TEST_CASE("a failed beginning may contain a true one") {
  StopMatcher m(Strings{"aab"});
  CHECK(m.feed("aaa") == "a");
  CHECK(m.feed("b") == "");
  CHECK(m.stopped());
  StopMatcher nested(Strings{"abcd", "bc"});
  CHECK(nested.feed("xabc") == "xa");
  CHECK(nested.matched() == 1u);
}

TEST_CASE("pieces of UTF-8 stay whole") {
  StopMatcher m(Strings{"\u7ed3\u675f"});  // two characters of three bytes
  CHECK(m.feed("\u7ed3") == "");
  CHECK(m.feed("\u679c") == "\u7ed3\u679c");
  CHECK(m.feed("\u7ed3\u675f") == "");
  CHECK(m.stopped());
}

TEST_CASE("random texts cut anywhere give what a search of the whole text gives, and hold back no byte too many") {
  for (uint32_t seed = 1; seed <= 3000; ++seed) {
    CAPTURE(seed);
    std::mt19937 rng(seed);
    const auto text_of = [&](size_t n) {
      std::string s;
      while (s.size() < n) s.push_back("abc"[rng() % (2 + seed % 2)]);
      return s;
    };
    Strings stops;
    for (size_t i = rng() % 4; i > 0; --i) stops.push_back(text_of(1 + rng() % 9));
    const std::string text = text_of(rng() % 60);
    const Expected expected = naive(stops, text);
    StopMatcher m(stops);
    std::string shown;
    for (size_t pos = 0; pos < text.size();) {
      const size_t n = std::min(text.size() - pos, size_t{rng() % 5});
      shown += m.feed(std::string_view(text).substr(pos, n));
      pos += n;
      if (m.stopped()) break;
      REQUIRE(m.held_bytes() == longest_held(stops, text.substr(0, pos)));
      REQUIRE(shown.size() + m.held_bytes() == pos);
    }
    shown += m.flush();
    REQUIRE(shown == expected.shown);
    REQUIRE(m.stopped() == expected.matched.has_value());
    if (expected.matched) REQUIRE(stops[*m.matched()] == stops[*expected.matched]);
  }
}

TEST_CASE("stop strings past the caps are refused by number and length") {
  CHECK_NOTHROW(validate_stop_strings(Strings{}));
  CHECK_NOTHROW(validate_stop_strings(Strings(64, std::string(1024, 'x'))));
  CHECK_THROWS_WITH_AS(validate_stop_strings(Strings(65, "x")), doctest::Contains("at most 64, got 65"), Error);
  CHECK_THROWS_WITH_AS(validate_stop_strings(Strings{"a", ""}), doctest::Contains("stop string 1"), Error);
  CHECK_THROWS_WITH_AS(validate_stop_strings(Strings{std::string(1025, 'x')}), doctest::Contains("1025"), Error);
  CHECK_THROWS_AS(StopMatcher(Strings{""}), BugError);
}

}  // namespace
