// The loops behind machine.h, one set for each instruction set. Plain: included by files compiled for one instruction
// set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fathom::cpu {

struct MachineLoops {
  const char* isa;
  /// Reads n bytes (a multiple of 512, 64-byte aligned); returns something that depends on them all.
  uint64_t (*read)(const std::byte* p, size_t n);
  /// n rounds of independent 8-bit multiply-adds; returns operations done (2 for each product).
  double (*int8)(int64_t n);
  /// n rounds of independent fused multiply-adds; returns operations done (2 each).
  double (*f32)(int64_t n);
};

namespace avx2 {
extern const MachineLoops machine_loops;
}
namespace avx_vnni {
double int8_loop(int64_t n);  ///< the rest is AVX2's
}
namespace avx512 {
extern const MachineLoops machine_loops;
}

}  // namespace fathom::cpu
