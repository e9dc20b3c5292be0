// What an operation on the CPU works with, and the table of implementations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/node.h"
#include "core/threads.h"
#include "cpu/element_kernels.h"
#include "cpu/kernels.h"

namespace fathom::cpu {

/// Handed to every operation on every thread of a run. All threads call the same operation together; it may use the
/// barrier. The backend puts a barrier between operations, none is needed at the end.
struct OpContext {
  Worker& worker;
  const MatmulKernels* matmul;     ///< matrix kernels of the chosen instruction set; null for the reference
  const ElementKernels* elements;  ///< row-wise kernels likewise
  std::byte* shared;  ///< workspace seen by all threads, as large as the operation asked for; 64-byte aligned
  std::byte* own;     ///< workspace of this thread alone, likewise
  /// Weights may be on disk: an expert's are asked for before it is their turn.
  bool reads_ahead = false;
};

/// Bytes of workspace an operation needs for these arguments.
struct Workspace {
  size_t shared_bytes = 0;
  size_t per_thread_bytes = 0;
};

}  // namespace fathom::cpu
