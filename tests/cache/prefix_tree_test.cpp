#include "cache/prefix_tree.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <random>

#include "core/error.h"

namespace {

using namespace fathom;
using Tokens = std::vector<int32_t>;

CacheLayout one_layer() { return {.n_layers = 1, .row_elements = {2}, .dtype = DType::kF32}; }

/// The row of a position: the token and a fingerprint of all tokens before it, as attention would make it depend on
/// them.
std::pair<float, float> row_of(const Tokens& tokens, int64_t pos) {
  uint32_t hash = 17;
  for (int64_t i = 0; i <= pos; ++i) hash = hash * 31 + static_cast<uint32_t>(tokens[static_cast<size_t>(i)]) + 1;
  return {static_cast<float>(tokens[static_cast<size_t>(pos)]), static_cast<float>(hash % 65536)};
}

bool extend(Sequence& s, const Tokens& tokens) {
  const int64_t n = static_cast<int64_t>(tokens.size()) - s.length();
  if (!s.reserve(n)) return false;
  for (const int32_t row : s.slots(s.length(), n)) {
    const auto [a, b] = row_of(tokens, s.length());
    float* x = s.pool().layer(0).as<float>() + row * 2;
    x[0] = a;
    x[1] = b;
    s.advance(1);
  }
  return true;
}

bool holds(const Sequence& s, const Tokens& tokens) {
  for (int64_t pos = 0; pos < s.length(); ++pos) {
    const float* x = s.pool().layer(0).as<float>() + s.slot(pos) * 2;
    if (std::pair(x[0], x[1]) != row_of(tokens, pos)) return false;
  }
  return true;
}

Tokens counting(int64_t n, int32_t first = 0) {
  Tokens tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

void check_all(const PagePool& pool, const PrefixTree& tree, std::vector<const Sequence*> live = {}) {
  const auto pool_violation = pool.check_integrity(live, tree.held_pages());
  REQUIRE_MESSAGE(!pool_violation.has_value(), pool_violation.value_or(""));
  const auto tree_violation = tree.check_integrity();
  REQUIRE_MESSAGE(!tree_violation.has_value(), tree_violation.value_or(""));
}

/// Runs a text into the tree as a server would: match, compute the rest, insert.
void remember(PagePool& pool, PrefixTree& tree, const Tokens& tokens) {
  Sequence s = tree.match(tokens);
  REQUIRE(extend(s, tokens));
  REQUIRE(tree.insert(tokens, s) == static_cast<int64_t>(tokens.size()));
  check_all(pool, tree, {&s});
}

TEST_CASE("a hit at any token around page borders finds exactly the common beginning, and its rows") {
  for (const int64_t k : {1, 2, 3}) {
    for (const int64_t stored : {k * 64 - 1, k * 64, k * 64 + 1}) {
      PagePool pool(one_layer(), 16);
      PrefixTree tree(pool, 16);
      const Tokens text = counting(stored);
      remember(pool, tree, text);
      CHECK(tree.n_pages() == (stored + 63) / 64);
      for (int64_t n = 0; n <= stored + 2; ++n) {
        CAPTURE(stored);
        CAPTURE(n);
        Tokens query = counting(n);
        query.push_back(-5);  // departs here
        CHECK(tree.match_length(query) == std::min(n, stored));
        Sequence s = tree.match(query);
        REQUIRE(s.length() == std::min(n, stored));
        CHECK(static_cast<int64_t>(s.pages().size()) == (s.length() + 63) / 64);
        CHECK(holds(s, query));
        REQUIRE(extend(s, query));
        CHECK(holds(s, query));
        check_all(pool, tree, {&s});
      }
      const Sequence again = tree.match(text);  // what the copies wrote did not reach the tree
      CHECK(again.length() == stored);
      CHECK(holds(again, text));
    }
  }
}

TEST_CASE("an empty tree and an empty text find nothing") {
  PagePool pool(one_layer(), 4);
  PrefixTree tree(pool, 4);
  CHECK(tree.match(counting(10)).length() == 0);
  CHECK(tree.match(Tokens{}).length() == 0);
  CHECK(tree.insert(Tokens{}, Sequence(pool)) == 0);
  CHECK(tree.evict(1) == 0);
  remember(pool, tree, counting(10));
  CHECK(tree.match(Tokens{}).length() == 0);
  CHECK(tree.match(Tokens{1}).length() == 0);
  check_all(pool, tree);
}

TEST_CASE("equal beginnings are kept once, a fuller last page replaces a part of it") {
  PagePool pool(one_layer(), 16);
  PrefixTree tree(pool, 16);
  remember(pool, tree, counting(100));
  CHECK(tree.n_pages() == 2);
  remember(pool, tree, counting(100));
  CHECK(tree.n_pages() == 2);
  remember(pool, tree, counting(110));
  CHECK(tree.n_pages() == 2);
  CHECK(tree.match_length(counting(128)) == 110);
  remember(pool, tree, counting(105));
  CHECK(tree.n_pages() == 2);
  CHECK(tree.match_length(counting(128)) == 110);
  remember(pool, tree, counting(130));
  CHECK(tree.n_pages() == 3);
  Tokens other = counting(100);
  other[70] = -1;
  remember(pool, tree, other);
  CHECK(tree.n_pages() == 4);
  CHECK(tree.match_length(other) == 100);
  CHECK(tree.match_length(counting(130)) == 130);
  CHECK(pool.used_pages() == 4);
}

TEST_CASE("a sequence goes on after its pages were remembered, without changing them") {
  PagePool pool(one_layer(), 8);
  PrefixTree tree(pool, 8);
  Sequence s(pool);
  REQUIRE(extend(s, counting(70)));
  REQUIRE(s.reserve(5));
  tree.insert(counting(70), s);
  CHECK_THROWS_AS(s.slots(70, 5), BugError);
  REQUIRE(extend(s, counting(90)));
  CHECK(holds(s, counting(90)));
  Tokens other = counting(70);
  other.resize(90, 7);
  Sequence t = tree.match(other);
  CHECK(t.length() == 70);
  REQUIRE(extend(t, other));
  CHECK(holds(t, other));
  CHECK(holds(s, counting(90)));
  check_all(pool, tree, {&s, &t});
}

TEST_CASE("eviction takes the least recently used ends first and nothing that others hold") {
  PagePool pool(one_layer(), 16);
  PrefixTree tree(pool, 16);
  remember(pool, tree, counting(128, 0));     // a: 2 pages
  remember(pool, tree, counting(128, 1000));  // b
  remember(pool, tree, counting(128, 2000));  // c
  (void)tree.match(counting(128, 0));         // a is the youngest now
  Sequence c = tree.match(counting(65, 2000));
  CHECK(tree.evict(1) == 1);
  CHECK(tree.match_length(counting(128, 1000)) == 64);
  check_all(pool, tree, {&c});
  CHECK(tree.evict(2) == 2);
  CHECK(tree.match_length(counting(128, 1000)) == 0);
  CHECK(tree.match_length(counting(128, 0)) == 64);
  CHECK(tree.evict(10) == 1);
  CHECK(tree.match_length(counting(128, 2000)) == 128);
  check_all(pool, tree, {&c});
  c.clear();
  CHECK(tree.evict(10) == 2);
  CHECK(pool.free_pages() == 16);
  check_all(pool, tree);
}

TEST_CASE("a bounded tree gives up old texts for new ones and never the text it is taking in") {
  PagePool pool(one_layer(), 32);
  PrefixTree tree(pool, 3);
  remember(pool, tree, counting(128, 0));
  remember(pool, tree, counting(128, 1000));
  CHECK(tree.n_pages() == 3);
  CHECK(tree.match_length(counting(128, 1000)) == 128);
  CHECK(tree.match_length(counting(128, 0)) == 64);
  Sequence longer(pool);
  REQUIRE(extend(longer, counting(300, 5000)));
  CHECK(tree.insert(counting(300, 5000), longer) == 192);
  CHECK(tree.match_length(counting(300, 5000)) == 192);
  check_all(pool, tree, {&longer});
  PrefixTree none(pool, 0);
  CHECK(none.insert(counting(300, 5000), longer) == 0);
}

TEST_CASE("a page of the way is kept though only the tree holds it, while its text grows") {
  PagePool pool(one_layer(), 32);
  PrefixTree tree(pool, 1);
  remember(pool, tree, counting(64));
  Sequence own(pool);  // the same tokens on other pages
  REQUIRE(extend(own, counting(128)));
  CHECK(tree.insert(counting(128), own) == 64);
  CHECK(tree.match_length(counting(128)) == 64);
  check_all(pool, tree, {&own});
}

TEST_CASE("a text of many pages comes and goes without recursion") {
  PagePool pool(one_layer(), 20000);
  PrefixTree tree(pool, 20000);
  const Tokens text = counting(64 * 20000);
  {
    Sequence s(pool);
    REQUIRE(s.reserve(64 * 20000));
    s.advance(64 * 20000);
    CHECK(tree.insert(text, s) == 64 * 20000);
  }
  CHECK(tree.match_length(text) == 64 * 20000);
  tree.clear();
  CHECK(pool.free_pages() == 20000);
}

TEST_CASE("misuse is a bug that is caught") {
  PagePool pool(one_layer(), 4), other(one_layer(), 4);
  PrefixTree tree(pool, 4);
  CHECK_THROWS_AS(tree.insert(counting(1), Sequence(pool)), BugError);
  CHECK_THROWS_AS(tree.insert(Tokens{}, Sequence(other)), BugError);
}

/// A tree large enough never to evict finds the longest beginning that any remembered text shares with the query.
TEST_CASE("random texts with shared beginnings match as a list of all texts would") {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    std::mt19937 rng(seed);
    PagePool pool(one_layer(), 3000);
    PrefixTree tree(pool, 3000);
    std::vector<Tokens> texts;
    for (int step = 0; step < 60; ++step) {
      Tokens text;
      if (!texts.empty() && rng() % 4 != 0) {
        text = texts[rng() % texts.size()];
        text.resize(rng() % (text.size() + 1));
      }
      for (uint32_t n = rng() % 150; n > 0; --n) text.push_back(static_cast<int32_t>(rng() % (seed % 2 ? 2 : 1000)));
      int64_t longest = 0;
      for (const Tokens& t : texts) {
        longest = std::max<int64_t>(longest,
                                    std::mismatch(text.begin(), text.end(), t.begin(), t.end()).first - text.begin());
      }
      REQUIRE(tree.match_length(text) == longest);
      Sequence s = tree.match(text);
      REQUIRE(s.length() == longest);
      REQUIRE(holds(s, text));
      REQUIRE(extend(s, text));
      REQUIRE(tree.insert(text, s) == static_cast<int64_t>(text.size()));
      texts.push_back(text);
      check_all(pool, tree, {&s});
    }
    for (const Tokens& text : texts) REQUIRE(holds(tree.match(text), text));
  }
}

/// With little room: whatever was evicted, a match is a true beginning with the right rows, and every page is accounted
/// for.
TEST_CASE("random serving under memory pressure keeps every row right and every page counted") {
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    CAPTURE(seed);
    std::mt19937 rng(seed * 77);
    PagePool pool(one_layer(), 24);
    PrefixTree tree(pool, 12 + rng() % 20);
    std::vector<Tokens> texts{Tokens{}};
    struct Running {
      Sequence sequence;
      Tokens tokens;
    };
    std::deque<Running> running;
    for (int step = 0; step < 400; ++step) {
      const uint32_t action = rng() % 5;
      if (action == 0 && !running.empty()) {
        Running& r = running.front();
        REQUIRE(holds(r.sequence, r.tokens));
        if (rng() % 2) tree.insert(r.tokens, r.sequence);
        running.pop_front();
      } else if (action == 1 && !running.empty()) {
        Running& r = running[rng() % running.size()];
        Tokens longer = r.tokens;
        for (uint32_t n = rng() % 40; n > 0; --n) longer.push_back(static_cast<int32_t>(rng() % 3));
        if (extend(r.sequence, longer)) r.tokens = longer;
      } else if (action == 2 && !running.empty()) {
        const Running& r = running[rng() % running.size()];
        tree.insert(r.tokens, r.sequence);
      } else if (running.size() < 4) {
        Tokens text = texts[rng() % texts.size()];
        text.resize(rng() % (text.size() + 1));
        for (uint32_t n = 1 + rng() % 130; n > 0; --n) text.push_back(static_cast<int32_t>(rng() % 3));
        Sequence s = tree.match(text);
        REQUIRE(s.length() <= static_cast<int64_t>(text.size()));
        REQUIRE(holds(s, text));
        const int64_t lacking = s.pages_needed(static_cast<int64_t>(text.size()) - s.length()) - pool.free_pages();
        if (lacking > 0) tree.evict(lacking);
        if (extend(s, text)) {
          texts.push_back(text);
          running.push_back({std::move(s), text});
        }
      }
      std::vector<const Sequence*> live;
      for (const Running& r : running) {
        REQUIRE(holds(r.sequence, r.tokens));
        live.push_back(&r.sequence);
      }
      check_all(pool, tree, live);
    }
    running.clear();
    tree.evict(1000);
    CHECK(pool.free_pages() == 24);
  }
}

}  // namespace
