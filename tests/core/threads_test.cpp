#include <doctest/doctest.h>
#include <atomic>
#include <vector>

#include "core/threads.h"

using namespace fathom;

TEST_CASE("every item is taken once, in every phase, for any number of threads") {
  for (const int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    for (int run = 0; run < 200; ++run) {
      std::vector<std::atomic<int>> first(101), second(7);
      pool.run([&](Worker& w) {
        w.share(101, 3, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++first[static_cast<size_t>(i)];
        });
        w.barrier();
        w.share(7, 2, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) second[static_cast<size_t>(i)] += first[static_cast<size_t>(i)];
        });
      });
      for (const auto& f : first) CHECK(f == 1);
      for (const auto& s : second) CHECK(s == 1);
    }
  }
}

TEST_CASE("a barrier shows what every thread wrote before it") {
  ThreadPool pool(4);
  std::vector<int> written(4, 0);
  for (int run = 1; run <= 500; ++run) {
    std::atomic<int> wrong{0};
    pool.run([&](Worker& w) {
      written[static_cast<size_t>(w.index())] = run;
      w.barrier();
      for (const int v : written) wrong += v != run;
      w.barrier();
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("this process may use at least one core") { CHECK(usable_physical_cores() >= 1); }
