// What this machine can do at best: the bounds that every figure of `fathom bench` is held against.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

/// Best of several passes, all threads together, unless said otherwise.
struct MachineFigures {
  int n_threads = 0;
  std::string isa;             ///< of the loops measured
  double read_gb_s = 0;        ///< reading memory far larger than the caches, huge pages where the system gives them
  double read_one_gb_s = 0;    ///< the same with one thread
  double copy_gb_s = 0;        ///< bytes copied, counted once
  double int8_gop_s = 0;       ///< multiplications and additions of 8-bit products, from registers
  double f32_gflop_s = 0;      ///< fused multiply-adds counted as two, from registers
  double f32_one_gflop_s = 0;  ///< with one thread: all / one is near the number of threads on a quiet machine
};

/// Takes about a second and 512 MiB. Throws Error{kNoMemory}.
MachineFigures measure_machine(int n_threads);

}  // namespace fathom
