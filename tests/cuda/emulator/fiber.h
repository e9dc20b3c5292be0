// A function with a stack of its own that can be left in the middle and entered again.
#pragma once

#include <cstddef>
#include <functional>

namespace fathom::emulator {

/// One thread enters and leaves; the function must not throw.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next enter() begins `run` on a fresh stack.
  void start(std::function<void()> run);
  /// Goes on where the fiber left, until it leaves or its function returns.
  void enter();
  /// Called on the fiber: back to enter()'s caller.
  void leave();
  /// Forgets the function where it stands; nothing on its stack is destroyed.
  void abandon();

 private:
  struct State;
  State* state_;
};

}  // namespace fathom::emulator
