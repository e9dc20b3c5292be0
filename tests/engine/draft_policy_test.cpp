#include "engine/draft_policy.h"

#include <doctest/doctest.h>

using namespace fathom;

namespace {

/// Steps whose cost grows by `row` of a step for each row more.
double cost(double row, int64_t rows) { return 1 + row * static_cast<double>(rows - 1); }

DraftPolicy measured_policy(DraftMode mode, double row, size_t n_answers = 1) {
  DraftPolicy policy(mode, [row](int64_t rows) { return cost(row, rows); });
  for (int i = 0; i < 8; ++i)
    policy.measured({n_answers, n_answers, 0, 0, 0.01 * cost(row, static_cast<int64_t>(n_answers))});
  return policy;
}

using Chosen = std::vector<size_t>;

}  // namespace

TEST_CASE("a guess is evaluated if it is likelier to be right than a row is dear") {
  for (const double row : {0.05, 0.3, 0.6, 0.9}) {
    CAPTURE(row);
    DraftPolicy policy = measured_policy(DraftMode::kAuto, row);
    CHECK(policy.choose(1, {{{row + 0.05}}}) == Chosen{1});
    CHECK(policy.choose(1, {{{row - 0.04}}}) == Chosen{0});
  }
}

TEST_CASE("a chain is cut where its chance of being right so far pays no more") {
  DraftPolicy policy = measured_policy(DraftMode::kAuto, 0.2);
  CHECK(policy.choose(1, {{{0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9}}})[0] > 3);
  CHECK(policy.choose(1, {{{0.9, 0.5, 0.3, 0.9}}}) == Chosen{2});
  CHECK(policy.choose(1, {{{}}}) == Chosen{0});
}

TEST_CASE("of several answers the likeliest guesses are taken, and a full step takes none") {
  DraftPolicy policy = measured_policy(DraftMode::kAuto, 0.2, 3);
  CHECK(policy.choose(3, {{{0.95}}, {{}}, {{0.05}}}) == Chosen{1, 0, 0});
  const std::vector<DraftPolicy::Chain> many(DraftPolicy::kMostRows, DraftPolicy::Chain{{0.99}});
  CHECK(policy.choose(DraftPolicy::kMostRows, many) == Chosen(DraftPolicy::kMostRows, 0));
}

TEST_CASE("what a row costs is believed as measured, not as foretold") {
  DraftPolicy policy(DraftMode::kAuto, [](int64_t rows) { return cost(0.9, rows); });
  for (int i = 0; i < 64; ++i) {
    policy.measured({1, 1, 0, 0, 0.010});
    policy.measured({1, 2, 0, 0, 0.011});
  }
  CHECK(policy.choose(1, {{{0.3}}}) == Chosen{1});
}

TEST_CASE("the first steps are without guesses, so that there is something to compare with") {
  DraftPolicy policy(DraftMode::kAuto, [](int64_t rows) { return cost(0.1, rows); });
  CHECK(policy.choose(1, {{{0.99}}}) == Chosen{0});
}

TEST_CASE("off takes nothing, always takes all there is room for") {
  DraftPolicy off = measured_policy(DraftMode::kOff, 0.01);
  CHECK(off.choose(1, {{{1.0}}}) == Chosen{0});
  CHECK_FALSE(off.mtp_pays());
  DraftPolicy always(DraftMode::kAlways, [](int64_t) { return 1.0; });
  CHECK(always.choose(2, {{{0.01, 0.01}}, {{0.01}}}) == Chosen{2, 1});
  CHECK(always.mtp_pays());
}

TEST_CASE("chances follow what guesses turned out to be") {
  DraftPolicy policy = measured_policy(DraftMode::kAuto, 0.5);
  const double before = policy.chance(DraftSource::kRepetition, 5), other = policy.chance(DraftSource::kMtp, 0.9);
  for (int i = 0; i < 100; ++i) policy.judged(DraftSource::kRepetition, 5, false);
  CHECK(policy.chance(DraftSource::kRepetition, 5) < 0.05);
  CHECK(before > 0.2);
  CHECK(policy.chance(DraftSource::kMtp, 0.9) == other);
  for (int i = 0; i < 100; ++i) policy.judged(DraftSource::kRepetition, 5, true);
  CHECK(policy.chance(DraftSource::kRepetition, 5) > 0.95);
}

TEST_CASE("an MTP block that costs more than it gives rests, and is tried again") {
  DraftPolicy policy = measured_policy(DraftMode::kAuto, 0.5);
  int active = 0;
  for (int i = 0; i < 2000; ++i) {
    if (policy.mtp_pays()) {
      ++active;
      policy.measured_mtp(0.002);
      policy.measured({1, 2, 1, i % 2 == 0 ? size_t{1} : size_t{0}, 0.015});  // half a token for 0.7 of a step
    } else {
      policy.measured({1, 1, 0, 0, 0.010});
    }
  }
  CHECK(active > 24);
  CHECK(active < 400);
}

TEST_CASE("an MTP block that gives more than it costs goes on") {
  DraftPolicy policy = measured_policy(DraftMode::kAuto, 0.3);
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(policy.mtp_pays());
    policy.measured_mtp(0.001);
    policy.measured({1, 2, 1, i % 10 == 0 ? size_t{0} : size_t{1}, 0.013});  // 0.9 of a token for 0.4 of a step
  }
}
