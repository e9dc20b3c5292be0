// Runs a grid of CUDA threads on one processor: blocks one after another, the threads of a block as fibers that change
// at barriers and warp operations only. What hardware leaves undefined ends the launch with an Error: a barrier that
// not all threads reach, threads that meet at different barriers or warp operations, writes beyond a shared array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

extern dim3 gridDim, blockDim;
extern uint3 blockIdx, threadIdx;

namespace fathom::emulator {

using Site = std::source_location;

/// In which order blocks and fibers get their turn. A kernel whose result depends on it has a race.
enum class Order { kRising, kFalling, kShuffled };
void set_order(Order order);

/// How often fibers were resumed since the program began; for tests of the emulator.
uint64_t n_switches();
/// Kernels that ran.
uint64_t n_launches();

/// Runs body once for every thread of the grid. must_wait: every thread has to call wait_for_previous_kernel().
/// Throws Error{kDevice} with the kernel's offence.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, bool must_wait, const std::function<void()>& body);

/// Ends the launch: called from a kernel's fiber.
[[noreturn]] void fail(const std::string& what);

// ---- called by device.h from inside a fiber ----

/// Memory of this block for the static shared array that `tag` stands for; the same for every thread of the block.
void* static_shared(const void* tag, size_t size_bytes);
void* dynamic_shared();
void block_barrier(Site site);
/// Number of threads of the block whose value is not zero; a barrier.
int block_count(bool value, Site site);

constexpr size_t kMaxLaneBytes = 48;
/// What the lanes of a warp brought to an operation that all lanes of `mask` perform together.
struct Exchange {
  uint32_t mask = 0, arrived = 0, left = 0;
  const char* what = nullptr;
  Site site;
  alignas(16) std::byte values[32][kMaxLaneBytes];
};
int lane_index();
/// Brings size_bytes to the operation, waits for the others of `mask`, gives everybody's values. Valid until the lane's
/// next operation.
const Exchange& exchange(uint32_t mask, const void* value, size_t size_bytes, const char* what, Site site);

void copy_later(void* shared, const void* global, size_t size_bytes, bool valid);
void commit_copies();
void wait_copies(int pending_groups);

/// Notes that this thread waited for the kernel before.
void note_wait();

}  // namespace fathom::emulator
