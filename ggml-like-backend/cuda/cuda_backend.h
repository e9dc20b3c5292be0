// NVIDIA GPUs as a backend. In a program built without nvcc the same functions find no device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace fathom {

struct CudaDevice {
  int index = 0;
  std::string name;    ///< "NVIDIA H100 80GB HBM3"
  int capability = 0;  ///< 90 for 9.0
  int n_multiprocessors = 0;
  uint64_t memory_bytes = 0, free_bytes = 0;
};

struct CudaDevices {
  std::vector<CudaDevice> devices;  ///< all that the driver shows
  std::string why_none;             ///< one clause if there are none: "the driver is missing or too old"
};

/// What this program's kernels were compiled for, "90a-real"; empty if it has none.
std::string cuda_architectures();

/// Asks the driver. free_bytes are looked up on request: that takes a moment and some memory of every device. Never
/// throws.
CudaDevices find_cuda_devices(bool with_free_bytes = false);

/// One of find_cuda_devices() by index. Throws Error{kDevice} if it cannot be opened or the kernels are not for it.
std::unique_ptr<Backend> make_cuda_backend(int device);

/// For estimates: a backend that counts the memory a model would take of the device and takes none; it executes
/// nothing. Throws Error{kDevice} if there is no such device.
std::unique_ptr<Backend> make_cuda_estimate(int device);

/// What a device can do at best, measured.
struct CudaFigures {
  double read_gb_s = 0;      ///< its memory, read
  double copy_gb_s = 0;      ///< its memory, bytes copied, counted once
  double upload_gb_s = 0;    ///< from pinned host memory
  double download_gb_s = 0;  ///< to pinned host memory
  double bf16_gop_s = 0;     ///< multiplications and additions of mma.sync from registers: below what wgmma reaches
  double step_us = 0;        ///< from the start of a captured graph of one kernel until the host knows it ended
};

/// Takes about a second and up to 2 GiB of the device. Throws Error{kDevice}, Error{kNoMemory}.
CudaFigures measure_cuda_device(int device);

}  // namespace fathom
