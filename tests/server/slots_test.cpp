// Places that threads share.
#include "server/slots.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

using namespace fathom;

TEST_CASE("however many come at once, all get a place in the end, and never more than there are") {
  Slots slots(4);
  std::atomic<int> inside = 0, most = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<std::future<void>> threads;
    for (int i = 0; i < 16; ++i) {
      threads.push_back(std::async(std::launch::async, [&, i] {
        for (int k = 0; k < 20; ++k) {
          {
            const Slots::Place place(slots);
            const int now = ++inside;
            for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
            }
            if (k % 5 == 0) std::this_thread::yield();
            --inside;
          }
          if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i * 3));
        }
      }));
    }
    for (std::future<void>& thread : threads) thread.get();
  }
  CHECK(most <= 4);
  CHECK(inside == 0);
}
