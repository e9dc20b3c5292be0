#include "cache/pages.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <set>

#include "core/error.h"

namespace {

using namespace fathom;

CacheLayout small_layout(DType dtype = DType::kF32) { return {.n_layers = 2, .row_elements = {3, 5}, .dtype = dtype}; }

/// Writes `value` to the rows of the next n tokens: layer i gets value + i in every element.
void append(Sequence& s, int64_t n, float value) {
  REQUIRE(s.reserve(n));
  const std::vector<int32_t> rows = s.slots(s.length(), n);
  for (int i = 0; i < s.pool().layout().n_layers; ++i) {
    const int64_t n_elements = s.pool().layout().row_elements[static_cast<size_t>(i)];
    for (const int32_t row : rows) {
      float* x = s.pool().layer(i).as<float>() + row * n_elements;
      std::fill(x, x + n_elements, value + static_cast<float>(i));
    }
  }
  s.advance(n);
}

/// The value append() wrote at a position; NaN if the elements or layers disagree.
float value_at(const Sequence& s, int64_t pos) {
  const CacheLayout& layout = s.pool().layout();
  const float* first = s.pool().layer(0).as<float>() + s.slot(pos) * layout.row_elements[0];
  for (int i = 0; i < layout.n_layers; ++i) {
    const int64_t n_elements = layout.row_elements[static_cast<size_t>(i)];
    const float* x = s.pool().layer(i).as<float>() + s.slot(pos) * n_elements;
    for (int64_t e = 0; e < n_elements; ++e) {
      if (x[e] != *first + static_cast<float>(i)) return std::numeric_limits<float>::quiet_NaN();
    }
  }
  return *first;
}

void check_integrity(const PagePool& pool, std::initializer_list<const Sequence*> live) {
  const auto violation = pool.check_integrity({live.begin(), live.size()});
  CHECK_MESSAGE(!violation.has_value(), violation.value_or(""));
}

TEST_CASE("layer tensors are [pages, 64, elements] of the cache type, for every type") {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3}) {
    CAPTURE(dtype_name(dtype));
    PagePool pool({.n_layers = 2, .row_elements = {576, 64}, .dtype = dtype}, 3);
    CHECK(pool.layer(0).describe() == std::string(dtype_name(dtype)) + " [3, 64, 576]");
    CHECK(pool.layer(1).dim(2) == 64);
    CHECK(pool.layer(0).is_contiguous());
    CHECK(pool.layer(0).slab(2).data == pool.page_data(0, 2));
    CHECK(pool.capacity_bytes() == pool.layer(0).size_bytes() + pool.layer(1).size_bytes());
  }
}

TEST_CASE("a type or row size that cannot be held is refused by name") {
  CHECK_THROWS_WITH_AS(PagePool({.n_layers = 1, .row_elements = {256}, .dtype = DType::kQ4_K}, 1),
                       doctest::Contains("q4_k"), Error);
  CHECK_THROWS_WITH_AS(PagePool({.n_layers = 1, .row_elements = {33}, .dtype = DType::kQ8_0}, 1),
                       doctest::Contains("multiple of 32"), Error);
  CHECK_THROWS_AS(PagePool({.n_layers = 2, .row_elements = {32}, .dtype = DType::kF32}, 1), BugError);
  CHECK_THROWS_AS(PagePool(small_layout(), std::numeric_limits<int64_t>::max()), Error);
}

TEST_CASE("reserve takes the pages that a length needs, at and around page borders") {
  for (const int64_t k : {1, 2, 3}) {
    for (const int64_t n : {k * 64 - 1, k * 64, k * 64 + 1}) {
      CAPTURE(n);
      PagePool pool(small_layout(), 8);
      Sequence s(pool);
      append(s, n, 1);
      CHECK(s.length() == n);
      CHECK(static_cast<int64_t>(s.pages().size()) == (n + 63) / 64);
      CHECK(pool.used_pages() == (n + 63) / 64);
      CHECK(pool.used_bytes() == static_cast<size_t>((n + 63) / 64) * 64 * 8 * 4);
      check_integrity(pool, {&s});
      s.truncate(n - 1);
      CHECK(pool.used_pages() == (n - 1 + 63) / 64);
      s.clear();
      CHECK(pool.used_pages() == 0);
      check_integrity(pool, {&s});
    }
  }
}

TEST_CASE("slots are page * 64 + offset, each used once") {
  PagePool pool(small_layout(), 4);
  Sequence a(pool), b(pool);
  append(a, 10, 1);
  append(b, 70, 2);
  append(a, 80, 3);
  std::set<int32_t> seen;
  for (const Sequence* s : {&a, &b}) {
    const std::vector<int32_t> rows = s->slots(0, s->length());
    for (int64_t pos = 0; pos < s->length(); ++pos) {
      const int32_t row = rows[static_cast<size_t>(pos)];
      CHECK(row == s->pages()[static_cast<size_t>(pos / 64)] * 64 + pos % 64);
      CHECK(row == s->slot(pos));
      CHECK(seen.insert(row).second);
    }
  }
  CHECK(value_at(a, 9) == 1);
  CHECK(value_at(a, 10) == 3);
  CHECK(value_at(b, 69) == 2);
  CHECK_THROWS_AS(a.slots(100, 100), BugError);
  CHECK_THROWS_AS(a.slot(128), BugError);
  CHECK_THROWS_AS(a.advance(39), BugError);
  CHECK_THROWS_AS(a.truncate(91), BugError);
}

TEST_CASE("a full pool refuses and changes nothing") {
  PagePool pool(small_layout(), 3);
  Sequence a(pool);
  append(a, 100, 1);
  const std::vector<int32_t> before(a.pages().begin(), a.pages().end());
  CHECK_FALSE(a.reserve(93));
  CHECK_FALSE(a.reserve(std::numeric_limits<int64_t>::max()));
  CHECK(std::equal(before.begin(), before.end(), a.pages().begin(), a.pages().end()));
  CHECK(pool.free_pages() == 1);
  check_integrity(pool, {&a});
  CHECK(a.reserve(92));
  CHECK(pool.free_pages() == 0);
  CHECK_FALSE(pool.allocate().has_value());
  check_integrity(pool, {&a});
}

TEST_CASE("a fork shares every page; the writer gets a copy of the last one, in all layers") {
  PagePool pool(small_layout(), 5);
  Sequence a(pool);
  append(a, 70, 1);
  Sequence b = a.fork();
  CHECK(pool.used_pages() == 2);
  CHECK(std::equal(a.pages().begin(), a.pages().end(), b.pages().begin(), b.pages().end()));
  check_integrity(pool, {&a, &b});
  CHECK(b.pages_needed(1) == 1);
  append(b, 3, 2);
  CHECK(pool.used_pages() == 3);
  CHECK(a.pages()[0] == b.pages()[0]);
  CHECK(a.pages()[1] != b.pages()[1]);
  CHECK(a.pages_needed(1) == 0);  // alone on its page again
  append(a, 3, 3);
  for (int64_t pos = 0; pos < 70; ++pos) {
    REQUIRE(value_at(a, pos) == 1);
    REQUIRE(value_at(b, pos) == 1);
  }
  for (int64_t pos = 70; pos < 73; ++pos) {
    CHECK(value_at(a, pos) == 3);
    CHECK(value_at(b, pos) == 2);
  }
  check_integrity(pool, {&a, &b});
}

TEST_CASE("a fork at a page border needs no copy") {
  PagePool pool(small_layout(), 3);
  Sequence a(pool);
  append(a, 64, 1);
  Sequence b = a.fork();
  append(b, 1, 2);
  append(a, 1, 3);
  CHECK(pool.used_pages() == 3);
  CHECK(value_at(b, 64) == 2);
  CHECK(value_at(a, 64) == 3);
}

TEST_CASE("a copy that does not fit the pool is refused and nothing changed") {
  PagePool pool(small_layout(), 1);
  Sequence a(pool);
  append(a, 10, 1);
  Sequence b = a.fork();
  CHECK_FALSE(b.reserve(1));
  CHECK(b.pages()[0] == a.pages()[0]);
  check_integrity(pool, {&a, &b});
  a.clear();
  CHECK(b.reserve(1));
  check_integrity(pool, {&a, &b});
}

TEST_CASE("truncated into a shared page, a sequence copies before it writes again") {
  PagePool pool(small_layout(), 4);
  Sequence a(pool);
  append(a, 128, 1);
  Sequence b = a.fork();
  b.truncate(30);
  append(b, 5, 2);
  CHECK(value_at(a, 30) == 1);
  CHECK(value_at(b, 29) == 1);
  CHECK(value_at(b, 30) == 2);
  check_integrity(pool, {&a, &b});
}

TEST_CASE("writing to a shared page without a reserve is a bug that is caught") {
  PagePool pool(small_layout(), 4);
  Sequence a(pool);
  append(a, 10, 1);
  REQUIRE(a.reserve(5));
  const Sequence b = a.fork();
  CHECK_THROWS_AS(a.slots(10, 5), BugError);
  CHECK_NOTHROW(a.slots(0, 10));
  REQUIRE(a.reserve(5));
  CHECK_NOTHROW(a.slots(10, 5));
}

TEST_CASE("moves hand the pages over and destruction returns them") {
  PagePool pool(small_layout(), 4);
  {
    Sequence a(pool);
    append(a, 100, 1);
    Sequence b = std::move(a);
    CHECK(a.length() == 0);  // NOLINT: the moved-from state is part of the contract
    CHECK(b.length() == 100);
    check_integrity(pool, {&a, &b});
    Sequence c(pool);
    append(c, 1, 1);
    c = std::move(b);
    CHECK(pool.used_pages() == 2);
    check_integrity(pool, {&a, &b, &c});
  }
  CHECK(pool.used_pages() == 0);
}

TEST_CASE("pages retained by others survive their sequence and can be adopted") {
  PagePool pool(small_layout(), 4);
  std::vector<int32_t> kept;
  {
    Sequence a(pool);
    append(a, 70, 4);
    for (const int32_t page_id : a.pages()) {
      pool.retain(page_id);
      kept.push_back(page_id);
    }
    const Sequence* live[] = {&a};
    CHECK_FALSE(pool.check_integrity(live, kept).has_value());
    CHECK(pool.check_integrity(live).has_value());
  }
  CHECK(pool.used_pages() == 2);
  {
    Sequence b(pool, kept, 66);
    append(b, 1, 5);
    CHECK(value_at(b, 65) == 4);
    CHECK(b.pages()[1] != kept[1]);
    const Sequence* live[] = {&b};
    CHECK_FALSE(pool.check_integrity(live, kept).has_value());
  }
  for (const int32_t page_id : kept) pool.release(page_id);
  CHECK(pool.free_pages() == 4);
  CHECK_THROWS_AS(pool.release(kept[0]), BugError);
  CHECK_THROWS_AS(pool.retain(kept[0]), BugError);
  CHECK_THROWS_AS(pool.retain(4), BugError);
  CHECK_THROWS_AS(Sequence(pool, kept, 200), BugError);
}

TEST_CASE("integrity names a missing holder") {
  PagePool pool(small_layout(), 2);
  Sequence a(pool);
  append(a, 1, 1);
  const auto violation = pool.check_integrity({});
  REQUIRE(violation.has_value());
  CHECK(violation->find("page 0 counts 1 holders, but has 0") != std::string::npos);
}

TEST_CASE("random appends, forks, cuts and ends keep every timeline's content") {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    CAPTURE(seed);
    std::mt19937 rng(seed);
    PagePool pool(small_layout(), 24);
    struct Timeline {
      std::unique_ptr<Sequence> sequence;
      std::vector<float> values;
    };
    std::vector<Timeline> all;
    float next_value = 1;
    for (int step = 0; step < 1500; ++step) {
      const uint32_t action = rng() % 8;
      if (all.empty() || (action == 0 && all.size() < 6)) {
        all.push_back({std::make_unique<Sequence>(pool), {}});
      } else if (action == 1 && all.size() < 6) {
        const Timeline& from = all[rng() % all.size()];
        all.push_back({std::make_unique<Sequence>(from.sequence->fork()), from.values});
      } else if (action == 2) {
        all.erase(all.begin() + rng() % all.size());
      } else if (action == 3) {
        Timeline& t = all[rng() % all.size()];
        const auto cut = static_cast<size_t>(rng() % (t.values.size() + 1));
        t.sequence->truncate(static_cast<int64_t>(cut));
        t.values.resize(cut);
      } else {
        Timeline& t = all[rng() % all.size()];
        const int64_t n = rng() % 90;
        const int64_t needed = t.sequence->pages_needed(n);
        const bool fits = needed <= pool.free_pages();
        const int32_t before = pool.used_pages();
        if (fits) {
          append(*t.sequence, n, next_value);
          t.values.insert(t.values.end(), static_cast<size_t>(n), next_value);
          REQUIRE(pool.used_pages() - before == needed);
          next_value += 10;
        } else {
          REQUIRE_FALSE(t.sequence->reserve(n));
          REQUIRE(pool.used_pages() == before);
        }
      }
      std::vector<const Sequence*> live;
      for (const Timeline& t : all) {
        live.push_back(t.sequence.get());
        REQUIRE(t.sequence->length() == static_cast<int64_t>(t.values.size()));
        for (size_t pos = 0; pos < t.values.size(); ++pos) {
          REQUIRE(value_at(*t.sequence, static_cast<int64_t>(pos)) == t.values[pos]);
        }
      }
      const auto violation = pool.check_integrity(live);
      REQUIRE_MESSAGE(!violation.has_value(), violation.value_or(""));
    }
  }
}

}  // namespace
