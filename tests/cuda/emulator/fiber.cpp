#include "emulator/fiber.h"

#include <sys/mman.h>

#include <new>
#include <utility>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Keeps the registers that a called function has to preserve on the stack and changes stacks. swapcontext would do, but
// asks the kernel for the signal mask each time, thirty times slower.
extern "C" void fathom_emulator_switch(void** save_sp, void* load_sp);
asm(R"(
.text
.globl fathom_emulator_switch
.type fathom_emulator_switch, @function
fathom_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fathom_emulator_switch, .-fathom_emulator_switch
)");
#endif

namespace fathom::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;

}  // namespace

struct Fiber::State {
  std::byte* memory = nullptr;
  std::function<void()> run;
#if defined(__x86_64__)
  void* own_sp = nullptr;
  void* caller_sp = nullptr;
#else
  ucontext_t own, caller;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* own_fake = nullptr;
  void* caller_fake = nullptr;
  const void* caller_bottom = nullptr;
  size_t caller_size = 0;
#endif
  bool finished = true;

  void switch_in() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&caller_fake, memory + kGuardBytes, kStackBytes);
#endif
#if defined(__x86_64__)
    fathom_emulator_switch(&caller_sp, own_sp);
#else
    swapcontext(&caller, &own);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(caller_fake, nullptr, nullptr);
#endif
  }

  void switch_out() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(finished ? nullptr : &own_fake, caller_bottom, caller_size);
#endif
#if defined(__x86_64__)
    fathom_emulator_switch(&own_sp, caller_sp);
#else
    swapcontext(&own, &caller);
#endif
    arrived();
  }

  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own_fake, &caller_bottom, &caller_size);
#endif
  }

  static State* starting;  ///< whose first entry is under way
  static void first_entry() {
    State* s = starting;
    s->arrived();
    s->run();
    s->finished = true;
    s->switch_out();
  }
};

Fiber::State* Fiber::State::starting = nullptr;

Fiber::Fiber() : state_(new State) {
  void* p = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    delete state_;
    throw std::bad_alloc();
  }
  state_->memory = static_cast<std::byte*>(p);
  mprotect(p, kGuardBytes, PROT_NONE);
}

Fiber::~Fiber() {
  munmap(state_->memory, kGuardBytes + kStackBytes);
  delete state_;
}

void Fiber::start(std::function<void()> run) {
  State& s = *state_;
  s.run = std::move(run);
  s.finished = false;
#if defined(__SANITIZE_ADDRESS__)
  s.own_fake = nullptr;
#endif
#if defined(__x86_64__)
  // What fathom_emulator_switch pops: six registers and the address it returns to, then the place of first_entry's own
  // return address. At a function's first instruction the stack pointer is 8 below a multiple of 16.
  void** top = reinterpret_cast<void**>(s.memory + kGuardBytes + kStackBytes);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&State::first_entry);
  for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
  s.own_sp = top - 8;
#else
  getcontext(&s.own);
  s.own.uc_stack.ss_sp = s.memory + kGuardBytes;
  s.own.uc_stack.ss_size = kStackBytes;
  s.own.uc_link = nullptr;
  makecontext(&s.own, &State::first_entry, 0);
#endif
}

void Fiber::enter() {
  State::starting = state_;
  state_->switch_in();
}

void Fiber::leave() { state_->switch_out(); }

void Fiber::abandon() {
  state_->finished = true;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state_->memory + kGuardBytes, kStackBytes);
#endif
}

}  // namespace fathom::emulator
