// Recent rows of pages: who holds them, what is copied, where a text can go on, and what a tree keeps.
#include <doctest/doctest.h>
#include <random>
#include <utility>

#include "cache/prefix_tree.h"
#include "cache_fixture.h"
#include "core/error.h"

using namespace fathom;
using namespace fathom::cache_test;

namespace {

/// A layer of a row for 4 tokens, one of a row for 128, and two kinds of recent rows.
CacheLayout compressed_layout() {
  CacheLayout layout{.n_layers = 2, .row_elements = {8, 4}, .dtype = DType::kF32};
  layout.tokens_per_row = {4, 128};
  layout.recent = {{3, DType::kF32}, {2, DType::kBF16}};
  layout.recent_tokens = 127;
  return layout;
}

float recent_value(int32_t token, int64_t pos) { return static_cast<float>(token * 1000 + pos); }

/// Adds tokens[s.length()..], 50 at a time: of the rows, the first kind of recent ones and those of 4 tokens.
bool add(Sequence& s, const Tokens& tokens) {
  while (s.length() < std::ssize(tokens)) {
    const int64_t first = s.length(), n = std::min<int64_t>(50, std::ssize(tokens) - first);
    if (!s.reserve(n)) return false;
    for (int64_t pos = first; pos < first + n; ++pos) {
      const int32_t slot = s.slots(pos, 1)[0], page = slot / kPageTokens, at = slot % kPageTokens;
      const float value = recent_value(tokens[static_cast<size_t>(pos)], pos);
      for (int64_t e = 0; e < 3; ++e) reinterpret_cast<float*>(s.pool().recent_data(0, page))[at * 3 + e] = value;
      if (pos % 4 == 3) reinterpret_cast<float*>(s.pool().page_data(0, page))[at / 4 * 8] = value;
    }
    s.advance(n);
  }
  return true;
}

/// Whether everything that evaluation after the sequence reads is there.
bool can_go_on(const Sequence& s, const Tokens& tokens) {
  for (int64_t pos = 0; pos < s.length(); ++pos) {
    const int32_t slot = s.slot(pos), page = slot / kPageTokens, at = slot % kPageTokens;
    const float value = recent_value(tokens[static_cast<size_t>(pos)], pos);
    const bool is_recent = pos >= s.length() - s.pool().layout().recent_tokens;
    if (is_recent && reinterpret_cast<const float*>(s.pool().recent_data(0, page))[at * 3 + 2] != value) return false;
    if (pos % 4 == 3 && reinterpret_cast<const float*>(s.pool().page_data(0, page))[at / 4 * 8] != value) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("a page has the rows that its tokens complete") {
  const CacheLayout layout = compressed_layout();
  CHECK(layout.n_rows(0, 3) == 0);
  CHECK(layout.n_rows(0, 7) == 1);
  CHECK(layout.n_rows(0, 64) == 16);
  CHECK(layout.n_rows(1, 63) == 0);
  CHECK(layout.n_rows(1, 64) == 1);
  CHECK(layout.page_bytes() == 16 * 8 * 4 + 4 * 4);
  CHECK(layout.recent_page_bytes() == 64 * (3 * 4 + 2 * 2));
  const PagePool pool(layout, 3);
  CHECK(pool.layer(0).shape == Shape{3, 16, 8});
  CHECK(pool.layer(1).shape == Shape{3, 1, 4});
  CHECK(pool.recent(1).shape == Shape{3, 64, 2});
  CHECK(pool.recent(1).row(2) == pool.recent_data(1, 2));
}

TEST_CASE("a sequence gives up the recent rows that nothing after it reads, and their memory reads as zeros") {
  PagePool pool(compressed_layout(), 20);
  Sequence s(pool);
  const Tokens tokens = counting(1000, 1);
  REQUIRE(add(s, tokens));
  CHECK(s.first_recent() == (1000 - 127 - kRecentSlack) / kPageTokens);
  CHECK(pool.recent_bytes() == (16 - static_cast<size_t>(s.first_recent())) * pool.layout().recent_page_bytes());
  CHECK(can_go_on(s, tokens));
  CHECK_FALSE(pool.has_recent(s.pages()[0]));
  CHECK(reinterpret_cast<const float*>(pool.recent_data(0, s.pages()[0]))[0] == 0);
  CHECK(s.resumable(1000 - kRecentSlack) == 1000 - kRecentSlack);
  CHECK(s.resumable(600) == 0);
  CHECK_THROWS_AS(s.truncate(600), BugError);
  check_integrity(pool, {&s});
  s.clear();
  CHECK(pool.recent_bytes() == 0);
}

TEST_CASE("forks, cuts and trees in any order keep every text going") {
  std::mt19937 random(11);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint32_t>(n)); };
  for (const int64_t max_recent : {0, 3, 8, 1000}) {
    CAPTURE(max_recent);
    PagePool pool(compressed_layout(), 60);
    PrefixTree tree(pool, 40, max_recent);
    struct Text {
      Tokens tokens;
      Sequence sequence;
    };
    std::vector<Text> texts;
    for (int round = 0; round < 1500; ++round) {
      const int64_t what = below(6);
      if (what == 0 || texts.empty()) {  // a new text, often with a known beginning
        Tokens tokens = counting(1 + below(500), static_cast<int32_t>(1 + below(3)));
        if (below(2) == 0 && tokens.size() > 10) tokens[static_cast<size_t>(below(std::ssize(tokens)))] += 5000;
        Sequence s = tree.match(tokens);
        CHECK(can_go_on(s, tokens));
        texts.push_back({tokens, std::move(s)});
      } else {
        Text& text = texts[static_cast<size_t>(below(std::ssize(texts)))];
        const int64_t length = text.sequence.length();
        if (what == 1) {
          const bool done = add(text.sequence, text.tokens);
          if (!done) tree.evict(5);
        } else if (what == 2) {
          texts.push_back({text.tokens, text.sequence.fork()});
        } else if (what == 3) {
          text.sequence.truncate(text.sequence.resumable(below(length + 1)));
        } else if (what == 4) {
          tree.insert(std::span(text.tokens).first(static_cast<size_t>(length)), text.sequence, below(2) == 0);
        } else {
          std::swap(text, texts.back());
          texts.pop_back();
        }
      }
      if (texts.size() > 6) texts.erase(texts.begin());
      std::vector<const Sequence*> live;
      for (const Text& text : texts) {
        live.push_back(&text.sequence);
        REQUIRE(can_go_on(text.sequence, text.tokens));
      }
      const auto pages = pool.check_integrity(live, tree.held_pages(), tree.held_recent());
      REQUIRE_MESSAGE(!pages.has_value(), pages.value_or(""));
      const auto nodes = tree.check_integrity();
      REQUIRE_MESSAGE(!nodes.has_value(), nodes.value_or(""));
    }
  }
}

TEST_CASE("a tree gives up the recent rows of the texts used longest ago") {
  PagePool pool(compressed_layout(), 100);
  PrefixTree tree(pool, 100, 8);  // two texts' ends of four pages
  std::vector<Tokens> texts;
  for (int32_t i = 0; i < 3; ++i) {
    texts.push_back(counting(400, 1 + 1000 * i));
    Sequence s(pool);
    REQUIRE(add(s, texts.back()));
    tree.insert(texts.back(), s);
    if (i == 1) CHECK(tree.match(texts[0]).length() == 400);  // used again: the second is now the oldest
  }
  CHECK(tree.match_length(texts[0]) == 400);
  CHECK(tree.match_length(texts[1]) == 0);
  CHECK(tree.match_length(texts[2]) == 400);
  // Evaluated anew, the text gets its end back.
  Sequence s(pool);
  REQUIRE(add(s, texts[1]));
  tree.insert(texts[1], s);
  s.clear();
  CHECK(tree.match_length(texts[1]) == 400);
  CHECK(can_go_on(tree.match(texts[1]), texts[1]));
}
