#include "emulator/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/error.h"
#include "emulator/fiber.h"

dim3 gridDim, blockDim;
uint3 blockIdx, threadIdx;

namespace fathom::emulator {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr std::byte kGuard{0xa7};
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 99 * 1024;  // what a block can have on every supported device

std::string text_of(Site site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}
bool same(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

struct LateCopy {
  std::byte* to;
  const std::byte* from;
  size_t size_bytes;
  bool valid;
};

struct Thread {
  enum class State { kReady, kWaiting, kDone };
  State state = State::kReady;
  uint3 index;
  Site site;                    ///< where it waits
  Exchange* current = nullptr;  ///< whose values this lane may still read
  bool waited = false;
  std::vector<std::vector<LateCopy>> copy_groups;  ///< the last one is still open
};

/// A shared array with guard bytes behind it.
struct SharedArray {
  size_t size_bytes;
  std::vector<std::byte> bytes;

  explicit SharedArray(size_t n) : size_bytes(n), bytes(n + kGuardBytes) { reset(); }
  void reset() {
    std::fill(bytes.begin(), bytes.end() - kGuardBytes, std::byte{0xff});
    std::fill(bytes.end() - kGuardBytes, bytes.end(), kGuard);
  }
  bool overrun() const {
    return std::any_of(bytes.end() - kGuardBytes, bytes.end(), [](std::byte b) { return b != kGuard; });
  }
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Thread> threads;
  std::vector<std::vector<std::unique_ptr<Exchange>>> pending;  ///< by warp: not all lanes have arrived
  std::vector<std::unique_ptr<Exchange>> busy, spare;           ///< complete, being read; unused
  std::map<const void*, SharedArray> arrays;
  std::unique_ptr<SharedArray> dynamic;
  const std::function<void()>* body = nullptr;
  std::exception_ptr error;
  int current = -1;
  int arrived = 0, count = 0, last_count = 0;
  Site barrier_site;
  bool must_wait = false;
  Order order = Order::kRising;
  std::mt19937 rng{1};
  uint64_t switches = 0, launches = 0;

  Thread& self() { return threads[static_cast<size_t>(current)]; }

  void pause(Site site) {
    self().state = Thread::State::kWaiting;
    self().site = site;
    fibers[static_cast<size_t>(current)]->leave();
  }

  void run_thread() {
    try {
      (*body)();
      if (must_wait && !self().waited) fail("a thread of an overlapped launch ends without wait_for_previous_kernel()");
      for (const auto& group : self().copy_groups) {
        if (!group.empty()) fail("a thread ends before its asynchronous copies");
      }
    } catch (...) {
      error = std::current_exception();
    }
    release(self());
    self().state = Thread::State::kDone;
  }

  void release(Thread& t) {
    Exchange* e = t.current;
    t.current = nullptr;
    if (e == nullptr || ++e->left < static_cast<uint32_t>(std::popcount(e->mask))) return;
    auto it = std::find_if(busy.begin(), busy.end(), [&](const auto& p) { return p.get() == e; });
    spare.push_back(std::move(*it));
    busy.erase(it);
  }

  void resume(int i) {
    current = i;
    threadIdx = threads[static_cast<size_t>(i)].index;
    ++switches;
    fibers[static_cast<size_t>(i)]->enter();
    current = -1;
  }

  [[noreturn]] void report_deadlock() {
    int waiting = 0, done = 0;
    std::map<std::string, std::pair<int, unsigned>> sites;
    for (const Thread& t : threads) {
      if (t.state == Thread::State::kDone) ++done;
      if (t.state != Thread::State::kWaiting) continue;
      auto [it, fresh] = sites.try_emplace(text_of(t.site), 0, t.index.x);
      ++it->second.first;
      ++waiting;
    }
    std::string message = "deadlock: " + std::to_string(waiting) + " threads wait";
    for (const auto& [site, n] : sites) {
      message +=
          ", " + std::to_string(n.first) + " at " + site + " (first threadIdx.x " + std::to_string(n.second) + ")";
    }
    fail(message + "; " + std::to_string(done) + " have ended");
  }

  void run_block(const std::vector<int>& turn) {
    for (auto& [tag, array] : arrays) array.reset();
    dynamic->reset();
    for (size_t i = 0; i < threads.size(); ++i) {
      Thread& t = threads[i];
      t.state = Thread::State::kReady;
      t.current = nullptr;
      t.waited = false;
      t.copy_groups.assign(1, {});
      fibers[i]->start([this] { run_thread(); });
    }
    arrived = 0;
    size_t done = 0;
    while (done < threads.size()) {
      bool moved = false;
      for (const int i : turn) {
        if (threads[static_cast<size_t>(i)].state != Thread::State::kReady) continue;
        moved = true;
        resume(i);
        if (error) std::rethrow_exception(error);
        if (threads[static_cast<size_t>(i)].state == Thread::State::kDone) ++done;
      }
      if (!moved) report_deadlock();
    }
    for (const auto& [tag, array] : arrays) {
      if (array.overrun()) fail("a static shared array of " + std::to_string(array.size_bytes) + " bytes was overrun");
    }
    if (dynamic->overrun())
      fail("the dynamic shared memory of " + std::to_string(dynamic->size_bytes) + " bytes was overrun");
  }

  std::vector<int> turns(int n) {
    std::vector<int> turn(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) turn[static_cast<size_t>(i)] = order == Order::kFalling ? n - 1 - i : i;
    if (order == Order::kShuffled) std::shuffle(turn.begin(), turn.end(), rng);
    return turn;
  }

  void clean_up() {
    for (size_t i = 0; i < threads.size(); ++i) {
      if (threads[i].state != Thread::State::kDone) fibers[i]->abandon();
    }
    arrays.clear();
    pending.clear();
    busy.clear();
    error = nullptr;
    current = -1;
  }
};

Machine& machine() {
  static Machine m;
  return m;
}

}  // namespace

void set_order(Order order) { machine().order = order; }
uint64_t n_switches() { return machine().switches; }
uint64_t n_launches() { return machine().launches; }

void fail(const std::string& what) {
  const Machine& m = machine();
  std::string where;
  if (m.current >= 0) {
    where = " [block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
            std::to_string(blockIdx.z) + " thread " + std::to_string(threadIdx.x) + "]";
  }
  throw Error(ErrorCode::kDevice, "emulated kernel: " + what + where);
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, bool must_wait, const std::function<void()>& body) {
  Machine& m = machine();
  const auto n = static_cast<int>(block.x * block.y * block.z);
  if (m.current >= 0) fail("a kernel starts a kernel");
  if (n < 1 || n > kMaxThreads) fail("a block of " + std::to_string(n) + " threads; hardware has 1 to 1024");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
    fail("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
         " blocks");
  }
  if (shared_bytes > kMaxSharedBytes)
    fail(std::to_string(shared_bytes) + " bytes of shared memory; some devices have 99 KiB at most");
  ++m.launches;
  gridDim = grid;
  blockDim = block;
  m.must_wait = must_wait;
  m.body = &body;
  m.dynamic = std::make_unique<SharedArray>(shared_bytes);
  m.threads.assign(static_cast<size_t>(n), {});
  m.pending.clear();
  m.pending.resize(static_cast<size_t>(n + 31) / 32);
  while (static_cast<int>(m.fibers.size()) < n) m.fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < n; ++i) {
    const auto u = static_cast<unsigned>(i);
    m.threads[u].index = {u % block.x, u / block.x % block.y, u / block.x / block.y};
  }
  try {
    const auto n_blocks = static_cast<int>(grid.x * grid.y * grid.z);
    const std::vector<int> turn = m.turns(n);
    for (const int b : m.turns(n_blocks)) {
      const auto u = static_cast<unsigned>(b);
      blockIdx = {u % grid.x, u / grid.x % grid.y, u / grid.x / grid.y};
      m.run_block(turn);
    }
  } catch (...) {
    m.clean_up();
    throw;
  }
  m.clean_up();
}

void* static_shared(const void* tag, size_t size_bytes) {
  Machine& m = machine();
  return m.arrays.try_emplace(tag, size_bytes).first->second.bytes.data();
}

void* dynamic_shared() { return machine().dynamic->bytes.data(); }

void block_barrier(Site site) { block_count(false, site); }

int block_count(bool value, Site site) {
  Machine& m = machine();
  if (m.arrived == 0) {
    m.barrier_site = site;
    m.count = 0;
  } else if (!same(m.barrier_site, site)) {
    fail("threads meet at different barriers: " + text_of(m.barrier_site) + " and " + text_of(site));
  }
  m.count += value;
  if (++m.arrived < static_cast<int>(m.threads.size())) {
    m.pause(site);
  } else {
    m.arrived = 0;
    m.last_count = m.count;
    for (Thread& t : m.threads) t.state = Thread::State::kReady;
  }
  return m.last_count;
}

int lane_index() { return machine().current % 32; }

const Exchange& exchange(uint32_t mask, const void* value, size_t size_bytes, const char* what, Site site) {
  Machine& m = machine();
  const int lane = lane_index(), warp = m.current / 32;
  if ((mask >> lane & 1u) == 0)
    fail(std::string(what) + " at " + text_of(site) + " by lane " + std::to_string(lane) + " that is not of its mask");
  m.release(m.self());
  auto& pending = m.pending[static_cast<size_t>(warp)];
  auto it = std::find_if(pending.begin(), pending.end(), [&](const auto& e) { return e->mask == mask; });
  if (it == pending.end()) {
    if (m.spare.empty()) m.spare.push_back(std::make_unique<Exchange>());
    pending.push_back(std::move(m.spare.back()));
    m.spare.pop_back();
    it = pending.end() - 1;
    Exchange& fresh = **it;
    fresh.mask = mask;
    fresh.arrived = fresh.left = 0;
    fresh.what = what;
    fresh.site = site;
  }
  Exchange& e = **it;
  if (std::strcmp(e.what, what) != 0 || !same(e.site, site)) {
    fail(std::string("lanes meet at different operations: ") + e.what + " at " + text_of(e.site) + " and " + what +
         " at " + text_of(site));
  }
  std::memcpy(e.values[lane], value, size_bytes);
  e.arrived |= 1u << lane;
  m.self().current = &e;
  if (e.arrived == mask) {
    m.busy.push_back(std::move(*it));
    pending.erase(it);
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1u) m.threads[static_cast<size_t>(warp * 32 + l)].state = Thread::State::kReady;
    }
  } else {
    m.pause(site);
  }
  return e;
}

void copy_later(void* shared, const void* global, size_t size_bytes, bool valid) {
  std::memset(shared, 0xff, size_bytes);  // whoever reads before the wait sees NaN
  machine().self().copy_groups.back().push_back(
      {static_cast<std::byte*>(shared), static_cast<const std::byte*>(global), size_bytes, valid});
}

void commit_copies() { machine().self().copy_groups.emplace_back(); }

void wait_copies(int pending_groups) {
  auto& groups = machine().self().copy_groups;  // all but the last are committed
  while (static_cast<int>(groups.size()) - 1 > pending_groups) {
    for (const LateCopy& c : groups.front())
      c.valid ? std::memcpy(c.to, c.from, c.size_bytes) : std::memset(c.to, 0, c.size_bytes);
    groups.erase(groups.begin());
  }
}

void note_wait() { machine().self().waited = true; }

}  // namespace fathom::emulator
