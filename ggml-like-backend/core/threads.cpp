#include "core/threads.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <system_error>

#include "core/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fathom {
namespace {

// How a thread waits, in three stages. Sleeping is the last: on a virtual machine it takes 50 us to wake a halted
// processor, as long as a small operation of a decode step, and a step has some 400 barriers.
constexpr int kQuickSpins = 200;  ///< without pauses: threads that arrive together meet in 0.07 us instead of 0.3
constexpr int kSpins = 2000;      ///< with pauses, 20 to 50 us: one task of weight rows
/// Then the processor is offered to others, which costs nothing where nobody wants it, for about the time between two
/// steps.
constexpr auto kYieldTime = std::chrono::milliseconds(2);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// The two stages before sleeping: whether `value` is no longer `old`.
bool changes_soon(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return true;
    if (i >= kQuickSpins) relax();
  }
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < kYieldTime) {
    if (value.load(std::memory_order_acquire) != old) return true;
    std::this_thread::yield();
  }
  return false;
}

/// `processors` but one; nothing if that would leave none, or it is none of them.
std::optional<cpu_set_t> without(cpu_set_t processors, int processor) {
  if (processor < 0 || !CPU_ISSET(static_cast<size_t>(processor), &processors)) return std::nullopt;
  CPU_CLR(static_cast<size_t>(processor), &processors);
  return CPU_COUNT(&processors) > 0 ? std::optional(processors) : std::nullopt;
}

/// Moves the calling thread to another processor that it may use, if there is one.
void leave_processor(int processor) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const std::optional<cpu_set_t> others = without(allowed, processor);
  if (!others || sched_setaffinity(0, sizeof(*others), &*others) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
}

void end_threads(std::atomic<bool>& stopping, std::atomic<uint32_t>& epoch, std::vector<std::thread>& threads) {
  stopping.store(true, std::memory_order_release);
  epoch.fetch_add(1, std::memory_order_release);
  epoch.notify_all();
  for (std::thread& t : threads) t.join();
}

}  // namespace

void Worker::barrier() {
  if (count_ == 1) {
    pool_.next_item_.store(0, std::memory_order_relaxed);
    return;
  }
  pool_.arrive_and_wait();
}

int64_t Worker::take(int64_t chunk) { return pool_.next_item_.fetch_add(chunk, std::memory_order_relaxed); }

Worker::Piece Worker::take_piece(int64_t n, int64_t unit) {
  int64_t begin = pool_.next_item_.load(std::memory_order_relaxed);
  for (;;) {
    if (begin >= n) return {n, n};
    // A quarter of every thread's even share of the rest, and no less than a unit.
    const int64_t size = std::max(unit, (n - begin) / (int64_t{4} * count_) / unit * unit),
                  end = std::min(n, begin + size);
    if (pool_.next_item_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end};
  }
}

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads) {
  FATHOM_CHECK(n_threads >= 1, "a pool needs a thread");
  threads_.reserve(static_cast<size_t>(n_threads - 1));
  asleep_ = std::make_unique<std::atomic<bool>[]>(static_cast<size_t>(n_threads));
  try {
    for (int i = 1; i < n_threads; ++i) threads_.emplace_back([this, i] { thread_main(i); });
  } catch (const std::system_error& error) {
    const size_t n_made = threads_.size() + 1;
    end_threads(stopping_, epoch_, threads_);
    throw Error(ErrorCode::kRuntime, "threads: the system gives no more; expected " + std::to_string(n_threads) +
                                         ", got " + std::to_string(n_made) + " (" + error.what() +
                                         "); try a smaller --threads");
  }
}

ThreadPool::~ThreadPool() { end_threads(stopping_, epoch_, threads_); }

void ThreadPool::keep_sleepers_away() {
  bool any = false;
  for (int i = 1; i < n_threads_; ++i) any = any || asleep_[i].load(std::memory_order_acquire);
  caller_processor_ = sched_getcpu();
  if (!any || sched_getaffinity(0, sizeof(allowed_), &allowed_) != 0) return;
  const std::optional<cpu_set_t> others = without(allowed_, caller_processor_);
  for (int i = 1; others && i < n_threads_; ++i) {
    if (asleep_[i].load(std::memory_order_acquire))
      pthread_setaffinity_np(threads_[static_cast<size_t>(i - 1)].native_handle(), sizeof(*others), &*others);
  }
}

void ThreadPool::run(const std::function<void(Worker&)>& fn) {
  job_ = &fn;
  next_item_.store(0, std::memory_order_relaxed);
  if (n_threads_ > 1) {
    keep_sleepers_away();
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }
  Worker worker(*this, 0, n_threads_);
  fn(worker);
  if (n_threads_ > 1) arrive_and_wait();
}

void ThreadPool::run_alone(const std::function<void(Worker&)>& fn) {
  next_item_.store(0, std::memory_order_relaxed);
  Worker worker(*this, 0, 1);
  fn(worker);
}

void ThreadPool::arrive_and_wait() {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    next_item_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  } else if (!changes_soon(generation_, generation)) {
    generation_.wait(generation, std::memory_order_acquire);
  }
}

void ThreadPool::thread_main(int index) {
  uint32_t seen = 0;
  for (;;) {
    if (!changes_soon(epoch_, seen)) {
      asleep_[index].store(true, std::memory_order_release);
      epoch_.wait(seen, std::memory_order_acquire);
      asleep_[index].store(false, std::memory_order_release);
      // As keep_sleepers_away found it; unset where nobody has run anything yet.
      if (CPU_COUNT(&allowed_) > 0) sched_setaffinity(0, sizeof(allowed_), &allowed_);
    }
    ++seen;  // every run waits for all threads at its end, so no epoch is ever missed
    if (stopping_.load(std::memory_order_acquire)) return;
    if (sched_getcpu() == caller_processor_) leave_processor(caller_processor_);
    Worker worker(*this, index, n_threads_);
    (*job_)(worker);
    arrive_and_wait();
  }
}

int usable_physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::string siblings;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    if (!std::getline(file, siblings)) siblings = "cpu" + std::to_string(cpu);
    cores.insert(siblings);
  }
  return cores.empty() ? 1 : static_cast<int>(cores.size());
}

}  // namespace fathom
