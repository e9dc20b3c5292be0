// Who ends last goes on alone: how a kernel does at its end what would take another launch.
#pragma once

#include "cuda/device.h"

namespace fathom::cuda {

/// In every thread of the block whether it is the last of n to come here; it then sees what the others wrote before
/// (through __ldcg: its SM's cache may hold older bytes). The counter is zero before and after.
FATHOM_DEVICE bool is_last_block(int32_t* counter, int n) {
  FATHOM_SHARED(int, is_last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(counter, 1) == n - 1;
    if (last) *counter = 0;
    is_last[0] = last;
  }
  __syncthreads();
  __threadfence();
  return is_last[0] != 0;
}

}  // namespace fathom::cuda
