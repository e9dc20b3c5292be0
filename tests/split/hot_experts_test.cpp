#include "split/hot_experts.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

using namespace fathom;

namespace {

void use(HotExperts& experts, std::vector<int32_t> ids, int n_tokens = 1) {
  for (int i = 0; i < n_tokens; ++i) experts.used(ids);
}

/// Makes moves until none pays; how many.
int settle(HotExperts& experts) {
  int n = 0;
  for (; const auto move = experts.best_move(); ++n) experts.moved(*move);
  return n;
}

}  // namespace

TEST_CASE("experts that were never used do not come, used ones fill free places, the most used first") {
  HotExperts experts(8, 2);
  CHECK_FALSE(experts.best_move().has_value());
  use(experts, {3});
  use(experts, {5}, 4);
  CHECK(experts.best_move() == HotExperts::Move{5, 0});
  CHECK(settle(experts) == 2);
  CHECK(experts.place_of(5) == 0);
  CHECK(experts.place_of(3) == 1);
  CHECK_FALSE(experts.place_of(0).has_value());
}

TEST_CASE("one use drives nobody out, many do, and they take the place of the least used") {
  HotExperts experts(8, 2);
  use(experts, {1, 2}, 10);
  use(experts, {1}, 10);
  settle(experts);
  const auto place = experts.place_of(2);
  use(experts, {7});
  CHECK_FALSE(experts.best_move().has_value());
  use(experts, {7}, 15);
  CHECK(settle(experts) == 1);
  CHECK(experts.place_of(7) == place);
  CHECK(experts.place_of(1).has_value());
  CHECK_FALSE(experts.place_of(2).has_value());
}

TEST_CASE("what was used long ago counts little, however often that was") {
  HotExperts experts(4, 1);
  use(experts, {0}, 100'000);
  settle(experts);
  use(experts, {1}, 200);
  CHECK(settle(experts) == 1);
  CHECK(experts.place_of(1) == 0);
}

TEST_CASE("places enough for all end with all, none with none") {
  HotExperts all(5, 99), none(5, 0);
  CHECK(all.n_places() == 5);
  for (HotExperts* experts : {&all, &none}) use(*experts, {0, 1, 2, 3, 4});
  CHECK(settle(all) == 5);
  CHECK(settle(none) == 0);
}

TEST_CASE("of a skewed use a quarter of the places serve most, also after the text has changed") {
  std::mt19937 random(3);
  HotExperts experts(64, 16);
  for (const int32_t shift : {0, 32}) {  // other experts are hot in another text
    int hits = 0, n = 0;
    for (int token = 0; token < 2000; ++token) {
      std::vector<int32_t> ids;
      for (int i = 0; i < 6; ++i) {
        const bool is_hot = random() % 10 < 8;
        ids.push_back(static_cast<int32_t>((random() % (is_hot ? 12 : 64) + static_cast<uint32_t>(shift)) % 64));
      }
      if (token >= 500) {
        for (const int32_t id : ids) hits += experts.place_of(id).has_value();
        n += 6;
      }
      experts.used(ids);
      if (const auto move = experts.best_move()) experts.moved(*move);
    }
    CHECK(hits > 0.8 * n);
    CHECK(hits < n);
  }
}

TEST_CASE("every route is computed once, by who has its expert, whatever else fills its token's list") {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const int64_t n_experts = 4 + static_cast<int64_t>(random() % 12),
                  n_tokens = 1 + static_cast<int64_t>(random() % 5), n_used = 1 + static_cast<int64_t>(random() % 4);
    HotExperts experts(n_experts, static_cast<int64_t>(random() % 6));
    std::vector<int32_t> ids;
    std::vector<float> weights;
    for (int64_t i = 0; i < n_tokens * n_used; ++i) {
      ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(n_experts)));
      weights.push_back(static_cast<float>(i + 1));
    }
    use(experts, {ids.begin(), ids.begin() + 1});
    use(experts, ids);
    settle(experts);
    const DividedRoutes d = divide_routes(ids, weights, n_used, experts);
    CHECK(std::ssize(d.places) == (d.n_hits > 0 ? n_tokens * n_used : 0));
    CHECK(std::ssize(d.missed) == n_tokens * d.n_missed);
    CHECK(d.missed_weights.size() == d.missed.size());
    // What each expert weighs for each token, asked for and given.
    std::vector<double> want(static_cast<size_t>(n_tokens * n_experts)), got = want;
    for (int64_t t = 0; t < n_tokens; ++t) {
      const auto at = [&](int32_t expert) { return static_cast<size_t>(t * n_experts + expert); };
      for (int64_t k = 0; k < n_used; ++k) {
        const auto route = static_cast<size_t>(t * n_used + k);
        want[at(ids[route])] += weights[route];
        if (d.n_hits == 0) continue;
        int32_t there = 0;  // the expert in that place
        while (experts.place_of(there) != d.places[route]) ++there;
        got[at(there)] += d.place_weights[route];
      }
      for (int64_t k = 0; k < d.n_missed; ++k) {
        const auto route = static_cast<size_t>(t * d.n_missed + k);
        CHECK_FALSE(experts.place_of(d.missed[route]).has_value());
        got[at(d.missed[route])] += d.missed_weights[route];
      }
    }
    CHECK(got == want);
  }
}
