// A pool whose threads run one function together, with barriers inside: a whole forward pass is one call.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace fathom {

class ThreadPool;

/// One thread's part in a parallel run.
class Worker {
 public:
  int index() const { return index_; }
  int count() const { return count_; }

  /// Waits until every thread of the run is here. Everything written before is visible after.
  void barrier();

  /// Calls fn(begin, end) for chunks of [0, n) that no other thread takes, until none is left. All threads of the run
  /// call this with the same n and chunk, at most once between two barriers: they draw from one counter, which a
  /// barrier resets.
  template <typename Fn> void share(int64_t n, int64_t chunk, Fn&& fn) {
    for (;;) {
      const int64_t begin = take(chunk);
      if (begin >= n) return;
      fn(begin, begin + chunk < n ? begin + chunk : n);
    }
  }

  /// The same for weights: fn(begin, end, next), next = where this thread's following piece begins, n if this is its
  /// last, so that work can prefetch. A piece is drawn while the one before it is still to be done. Pieces are whole
  /// `unit`s and shrink towards the end: few draws, long streams of reads, and threads that finish together.
  template <typename Fn> void share_ahead(int64_t n, int64_t unit, Fn&& fn) {
    for (Piece piece = take_piece(n, unit); piece.begin < n;) {
      const Piece next = take_piece(n, unit);
      fn(piece.begin, piece.end, next.begin);
      piece = next;
    }
  }

 private:
  friend class ThreadPool;
  Worker(ThreadPool& pool, int index, int count) : pool_(pool), index_(index), count_(count) {}
  struct Piece {
    int64_t begin, end;
  };
  int64_t take(int64_t chunk);
  Piece take_piece(int64_t n, int64_t unit);

  ThreadPool& pool_;
  int index_;
  int count_;
};

/// Persistent threads; the calling thread is worker 0. Waiting threads spin for a short while, then sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }
  /// Runs fn on every thread and returns when all have finished. fn must not throw. Calls must not overlap.
  void run(const std::function<void(Worker&)>& fn);
  /// The same on the calling thread alone, the others go on waiting: for work that is done before they would have met.
  void run_alone(const std::function<void(Worker&)>& fn);

 private:
  friend class Worker;
  void arrive_and_wait();
  void thread_main(int index);
  /// Before sleeping threads are woken: bars them from the caller's processor until they are awake. The kernel often
  /// leaves two threads on one processor although another is idle, and until it balances its queues 10 to 40 ms later
  /// they take turns at every barrier. One that is awake moves by itself.
  void keep_sleepers_away();

  const int n_threads_;
  std::vector<std::thread> threads_;
  const std::function<void(Worker&)>* job_ = nullptr;
  std::atomic<bool> stopping_{false};
  int caller_processor_ = -1;                    ///< on which the last run began
  std::unique_ptr<std::atomic<bool>[]> asleep_;  ///< [n_threads] until a run begins
  cpu_set_t allowed_{};                          ///< where the process may run, as the last run to wake threads saw it
  alignas(64) std::atomic<uint32_t> epoch_{0};   ///< one more for every run
  alignas(64) std::atomic<int> arrived_{0};      ///< at the current barrier
  alignas(64) std::atomic<uint32_t> generation_{0};  ///< barriers passed
  alignas(64) std::atomic<int64_t> next_item_{0};    ///< of Worker::share
};

/// Physical cores that this process may use (its affinity mask, one for each set of SMT siblings); at least 1.
int usable_physical_cores();

}  // namespace fathom
