// Weights on their way to the device, and the tables that the IQ formats look up.
#include <cstring>

#include "core/quant/codebooks.h"
#include "cuda/formats.cuh"
#include "cuda/matmul_kernels.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread moves one byte of the file's row; neighbouring threads read neighbouring bytes.
FATHOM_KERNEL(kThreads, 1)
arrange_kernel(WeightLayout layout, const uint8_t* file_rows, int64_t n_rows, int n_blocks, int64_t out_row_bytes,
               uint8_t* out) {
  const int64_t file_row_bytes = static_cast<int64_t>(n_blocks) * layout.block_bytes;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n_rows * file_row_bytes;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / file_row_bytes;
    out[row * out_row_bytes + device_offset(layout, n_blocks, i % file_row_bytes)] = file_rows[i];
  }
}

}  // namespace

void arrange_weights(DType dtype, const std::byte* file_rows, int64_t n_rows, int64_t k, std::byte* out,
                     Stream stream) {
  FATHOM_CHECK(supports_weights(dtype) && k % weight_layout(dtype).block_elements == 0,
               "these are no weights: " + std::string(dtype_name(dtype)));
  FATHOM_CHECK(reinterpret_cast<uintptr_t>(out) % 16 == 0, "weights start at multiples of 16 bytes");
  const WeightLayout layout = weight_layout(dtype);
  const int64_t n_blocks = k / layout.block_elements, n_bytes = n_rows * n_blocks * layout.block_bytes;
  if (n_bytes == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((n_bytes + kThreads - 1) / kThreads, 1 << 16));
  launch(&arrange_kernel, blocks, kThreads, 0, stream, layout, reinterpret_cast<const uint8_t*>(file_rows), n_rows,
         static_cast<int>(n_blocks), weight_row_bytes(dtype, k), reinterpret_cast<uint8_t*>(out));
}

size_t grid_tables_bytes() { return GridTables::kBytes; }

void write_grid_tables(std::byte* host) {
  std::memcpy(host + GridTables::kIQ2XXS, kIQ2XXSGrid, sizeof(kIQ2XXSGrid));
  std::memcpy(host + GridTables::kIQ2XS, kIQ2XSGrid, sizeof(kIQ2XSGrid));
  std::memcpy(host + GridTables::kIQ2S, kIQ2SGrid, sizeof(kIQ2SGrid));
  std::memcpy(host + GridTables::kIQ3XXS, kIQ3XXSGrid, sizeof(kIQ3XXSGrid));
  std::memcpy(host + GridTables::kIQ3S, kIQ3SGrid, sizeof(kIQ3SGrid));
  for (int i = 0; i < 2048; ++i) {
    for (int j = 0; j < 8; ++j) {
      const auto value = static_cast<int8_t>(kIQ1SGrid[i] >> (8 * j) & 255u);
      host[GridTables::kIQ1 + 8 * i + j] = static_cast<std::byte>(8 * value + 1);
    }
  }
}

}  // namespace fathom::cuda
