// A number of places, and threads that wait for one.
#pragma once

#include <condition_variable>
#include <mutex>

namespace fathom {

/// std::counting_semaphore of libstdc++ 12 is not used: a thread that finds the counter changed between looking and
/// sleeping can sleep for ever beside free places (https://gcc.gnu.org/PR104928). A request did, under load. All are
/// woken, as glibc 2.36 can lose the one signal of notify_one (https://sourceware.org/PR25847).
class Slots {
 public:
  explicit Slots(int n) : free_(n) {}

  /// One place, for as long as this lives; waits for it.
  class Place {
   public:
    explicit Place(Slots& slots) : slots_(slots) {
      std::unique_lock lock(slots_.mutex_);
      slots_.changed_.wait(lock, [&] { return slots_.free_ > 0; });
      --slots_.free_;
    }
    ~Place() {
      {
        const std::lock_guard lock(slots_.mutex_);
        ++slots_.free_;
      }
      slots_.changed_.notify_all();
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    Slots& slots_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int free_;
};

}  // namespace fathom
