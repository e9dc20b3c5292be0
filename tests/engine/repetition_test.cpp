#include "engine/repetition.h"

#include <doctest/doctest.h>

#include <vector>

using namespace fathom;

namespace {

std::vector<int32_t> guessed(RepetitionIndex& index, const std::vector<int32_t>& text, size_t most = 8) {
  const RepetitionIndex::Found found = index.find(text, most);
  return {found.tokens.begin(), found.tokens.end()};
}

}  // namespace

TEST_CASE("a text without repetition says nothing about its next token") {
  RepetitionIndex index;
  CHECK(guessed(index, {}).empty());
  CHECK(guessed(index, {1, 2, 3}).empty());
  CHECK(guessed(index, {1, 2, 3, 4, 2, 3}).empty());  // two tokens are too few
}

TEST_CASE("what followed three equal tokens is guessed, as much as is wanted and there") {
  RepetitionIndex index;
  CHECK(guessed(index, {1, 2, 3, 4, 5, 1, 2, 3}) == std::vector<int32_t>{4, 5, 1, 2, 3});
  CHECK(guessed(index, {1, 2, 3, 4, 5, 1, 2, 3}, 2) == std::vector<int32_t>{4, 5});
  CHECK(guessed(index, {1, 2, 3, 4, 5, 1, 2, 3, 9}).empty());
}

TEST_CASE("the latest of several places counts, and how much before it is equal") {
  RepetitionIndex index;
  const std::vector<int32_t> text{7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 8, 1, 2, 3};
  const RepetitionIndex::Found found = index.find(text, 1);
  REQUIRE(found.tokens.size() == 1);
  CHECK(found.tokens[0] == 5);
  CHECK(found.match == 4);
}

TEST_CASE("a text that grows token by token gives what it gives at once") {
  std::vector<int32_t> text;
  RepetitionIndex growing;
  uint32_t state = 1;
  for (int i = 0; i < 400; ++i) {
    state = state * 1664525 + 1013904223;
    text.push_back(static_cast<int32_t>(state >> 30));  // of four tokens: repetitions are everywhere
    RepetitionIndex fresh;
    CHECK(guessed(growing, text) == guessed(fresh, text));
  }
}

TEST_CASE("a run of one token goes on") {
  RepetitionIndex index;
  CHECK(guessed(index, {5, 5, 5, 5, 5}, 3) == std::vector<int32_t>{5});  // as far as the text knows
}
