// What the CUDA backend is made from, so that it can be made on the emulator's runtime as well as on a device's.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/backend.h"
#include "cuda/stream.h"

namespace fathom::cuda {

/// The backend on a device that the runtime knows by this index. `description`: "cuda sm_90, NVIDIA H100 80GB HBM3".
std::unique_ptr<Backend> make_backend(int device, std::string description);

/// Units of the device's memory that are mapped and unmapped one by one. `counter` has the bytes taken; discard() waits
/// for the stream. Throws Error{kNoMemory}, Error{kDevice} if the device cannot map memory.
std::unique_ptr<SparseRange> make_units(int device, size_t n, size_t unit_bytes, std::string_view what, Stream stream,
                                        std::shared_ptr<uint64_t> counter);

/// A backend that takes as much memory as one on a device of memory_bytes would, and has none.
std::unique_ptr<Backend> make_counting_backend(std::string description, uint64_t memory_bytes);

/// Throws Error{kDevice} telling what was being done unless `error`, a cudaError_t, is zero.
void check_runtime(int error, const char* doing);

}  // namespace fathom::cuda
