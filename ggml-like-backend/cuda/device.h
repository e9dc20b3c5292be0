// What kernels are written against. A kernel is a function template or function marked FATHOM_KERNEL in a .cuh or .cu
// file that includes this header alone; nvcc compiles it for the device, g++ for the emulator of tests/cuda, where
// every CUDA thread is a fiber. Both offer:
//
// - CUDA's own names: threadIdx ..., __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync, __all_sync,
//   __match_any_sync, __reduce_*_sync, atomicAdd/Max/Min/Exch/CAS, __threadfence, __dp4a, __byte_perm, __popc, __ffs,
//   __clz, fmaf ...
// - FATHOM_KERNEL(threads, blocks): a kernel of at most `threads` threads a block, compiled for `blocks` blocks on an
// SM;
//   FATHOM_DEVICE: a function of kernels, inlined.
// - FATHOM_SHARED(Type, name, count): a static shared array; FATHOM_DYNAMIC_SHARED(name): the launch's bytes as
// unsigned char[].
//   Shared memory is not zero at the start; the emulator fills it with NaN bytes.
// - launch(kernel, grid, block, shared_bytes, stream, args...), and launch_overlapped for kernels that call
//   wait_for_previous_kernel() before they touch anything that an earlier kernel wrote.
// - below, under the same names in both: conversions, tensor core products, asynchronous copies.
//
// Kernels use 16-bit and 8-bit floats as raw bits, and fmaf where a result has to be the same bits in several kernels
// (the compiler decides alone whether a * b + c is rounded once or twice).
#pragma once

#if defined(__CUDACC__)
#include "cuda/device_nvcc.h"
#else
#include "emulator/device.h"
#endif
