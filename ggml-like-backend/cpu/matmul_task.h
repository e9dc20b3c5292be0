// What a matrix kernel is asked for. Plain: included by files that are compiled for one instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fathom::cpu {

/// y_rows[c][r] = dot(weight row r, activation c) for row_begin <= r < row_end, 0 <= c < n_cols.
struct MatmulTask {
  const std::byte* w;  ///< weight row r starts at w + r * row_stride_bytes, any alignment
  int64_t row_stride_bytes;
  int64_t row_begin;
  int64_t row_end;
  int64_t k;                    ///< elements of a row, a multiple of the weight type's block
  const void* const* act_rows;  ///< n_cols rows in the weight type's activation format
  int n_cols;
  float* const* y_rows;               ///< n_cols outputs, indexed by r itself (not by r - row_begin)
  const std::byte* next_w = nullptr;  ///< optional: weights this thread reads next; the last rows' work prefetches them
};

/// How the activations of a quantized product are stored. The kernels multiply unsigned weight bytes u = w + offset
/// with signed activation bytes q; a block's sums turn sum(u * q) into sum(w * q), or carry the weights' minimum.
enum class ActKind : uint8_t {
  kF32,       ///< not rounded: k floats
  kSum32,     ///< s[0] = sum of q, as float, for types with a minimum per 32
  kSum16,     ///< s[0], s[1] = sums of the halves of q, as float, for a minimum per 16
  kOffset32,  ///< s[0] = -offset * sum of q, as int32
  kOffset16,  ///< s[0], s[1] = -offset * sums of the halves, as int32, for types with a scale per 16
};

struct ActFormat {
  ActKind kind;
  uint8_t offset;  ///< 0 unless the kind has one
};

/// 32 activations x[i] = d * q[i] with d = max|x| / 127. A row is k / 32 of them.
struct ActBlock {
  int8_t q[32];
  float d;
  uint32_t s[2];  ///< bits of a float or int32, see ActKind
};
static_assert(sizeof(ActBlock) == 44);

/// One instruction set's kernel for one weight type.
struct MatmulKernel {
  ActFormat act_format;
  void (*quantize_act)(ActFormat format, const float* x, void* act, int64_t k);
  void (*matmul)(const MatmulTask& task);
};

}  // namespace fathom::cpu
