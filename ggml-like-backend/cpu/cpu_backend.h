// The CPU as a backend: chooses kernels for the instruction set once, runs a step's nodes on all threads together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace fathom {

struct CpuOptions {
  int n_threads = 0;                 ///< 0: the physical cores this process may use
  std::string isa = "auto";          ///< "auto", "reference" or a name of cpu_isa_names()
  bool reads_experts_ahead = false;  ///< weights are pages of files larger than memory
};

/// Instruction sets this build has kernels for and this machine can run, best first; "reference" is always the last.
std::vector<std::string> cpu_isa_names();

/// Throws Error{kUsage} naming the choices if the instruction set is unknown or absent on this machine.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace fathom
