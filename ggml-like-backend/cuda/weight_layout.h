// Where the bytes of a weight row lie on the device.
//
// A file's row is a run of blocks, most of an odd size (Q8_0 34 bytes, Q6_K 210), so that quants and scales lie at any
// even address and a thread could load two bytes at a time. On the device the fields of the blocks are sorted into
// planes: all quants of the row, then all of the next field, largest alignment first. Every plane then starts at a
// multiple of its field's alignment without a gap, a row takes as many bytes as in the file, and neighbouring threads
// load neighbouring 16 bytes. Rows start at multiples of 16 bytes. Q8_0, n blocks a row:
//
//   file:    d0 q0[32] d1 q1[32] ...          device:  q0[32] q1[32] ... | d0 d1 ... | padding to 16
//
// Plain constexpr functions: the CPU reads a device row through device_offset, the tests check that the map is one to
// one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace fathom::cuda {

/// A field of a block: where it lies in the file's block. Layouts: core/quant/blocks.h.
struct Plane {
  int file_offset;
  int bytes;  ///< of one block
};

struct WeightLayout {
  int block_elements = 0;  ///< 0: not a weight type
  int block_bytes = 0;
  int n_planes = 0;
  Plane planes[4] = {};  ///< in their order on the device

  /// Bytes of a block in the planes before plane p: that plane starts at n_blocks times this.
  constexpr int bytes_before(int p) const {
    int sum = 0;
    for (int i = 0; i < p; ++i) sum += planes[i].bytes;
    return sum;
  }
};

constexpr WeightLayout weight_layout(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {1, 4, 1, {{0, 4}}};
    case DType::kF16:
    case DType::kBF16: return {1, 2, 1, {{0, 2}}};
    case DType::kF8_E4M3: return {1, 1, 1, {{0, 1}}};
    //                                                  quants ...                               scales
    case DType::kQ4_0: return {32, 18, 2, {{2, 16}, {0, 2}}};
    case DType::kQ4_1: return {32, 20, 2, {{4, 16}, {0, 4}}};
    case DType::kQ5_0: return {32, 22, 3, {{6, 16}, {2, 4}, {0, 2}}};
    case DType::kQ5_1: return {32, 24, 2, {{8, 16}, {0, 8}}};
    case DType::kQ8_0: return {32, 34, 2, {{2, 32}, {0, 2}}};
    case DType::kIQ4_NL: return {32, 18, 2, {{2, 16}, {0, 2}}};
    case DType::kMXFP4: return {32, 17, 2, {{1, 16}, {0, 1}}};
    case DType::kQ2_K: return {256, 84, 3, {{16, 64}, {0, 16}, {80, 4}}};
    case DType::kQ3_K: return {256, 110, 4, {{32, 64}, {0, 32}, {96, 12}, {108, 2}}};
    case DType::kQ4_K: return {256, 144, 2, {{16, 128}, {0, 16}}};
    case DType::kQ5_K: return {256, 176, 3, {{48, 128}, {16, 32}, {0, 16}}};
    case DType::kQ6_K: return {256, 210, 4, {{0, 128}, {128, 64}, {192, 16}, {208, 2}}};
    case DType::kIQ4_XS: return {256, 136, 2, {{8, 128}, {0, 8}}};
    case DType::kIQ2_XXS: return {256, 66, 2, {{2, 64}, {0, 2}}};
    case DType::kIQ2_XS: return {256, 74, 3, {{2, 64}, {66, 8}, {0, 2}}};
    case DType::kIQ2_S: return {256, 82, 3, {{2, 64}, {66, 16}, {0, 2}}};  // quants and signs; high bits and scales
    case DType::kIQ3_XXS: return {256, 98, 2, {{2, 96}, {0, 2}}};          // quants, signs and scales
    case DType::kIQ3_S: return {256, 110, 4, {{2, 64}, {66, 40}, {106, 4}, {0, 2}}};  // second: high bits and signs
    case DType::kIQ1_S: return {256, 50, 2, {{2, 48}, {0, 2}}};                       // quants and high bits
    case DType::kIQ1_M: return {256, 56, 2, {{0, 48}, {48, 8}}};                      // quants and high bits; scales
    default: return {};
  }
}

/// Byte of a device row where byte `file_offset` of a file's row of n_blocks blocks lies.
constexpr int64_t device_offset(const WeightLayout& layout, int64_t n_blocks, int64_t file_offset) {
  const int64_t block = file_offset / layout.block_bytes;
  const int within = static_cast<int>(file_offset % layout.block_bytes);
  int before = 0;
  for (int p = 0; p < layout.n_planes; ++p) {
    const Plane& plane = layout.planes[p];
    if (within >= plane.file_offset && within < plane.file_offset + plane.bytes) {
      return n_blocks * before + block * plane.bytes + (within - plane.file_offset);
    }
    before += plane.bytes;
  }
  return -1;
}

/// Bytes between rows of k elements on the device; k is a multiple of the type's block.
constexpr int64_t weight_row_bytes(DType dtype, int64_t k) {
  const WeightLayout layout = weight_layout(dtype);
  return (k / layout.block_elements * layout.block_bytes + 15) / 16 * 16;
}

}  // namespace fathom::cuda
