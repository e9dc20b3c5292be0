// Matrix kernels by instruction set: quantized (or plain) weights as the file holds them, times a few or many columns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "cpu/matmul_task.h"

namespace fathom::cpu {

/// Matrix kernels of one instruction set. All functions are thread-safe, allocate nothing and touch only what they are
/// given.
///
/// Quantized weights are multiplied with activations rounded to int8 with one scale per 32 (integer products are
/// exact), F32, F16 and BF16 weights with f32 activations. Accumulation is f32 in an order that depends on neither
/// n_cols nor the other columns nor the row range: a column's result is the same bits alone and in any batch.
///
/// A call that announces the weights this thread reads next (MatmulTask::next_w) leaves them in the cache: with calls
/// of 64 rows that is worth half as much speed again. Fastest with row_begin a multiple of 32 (of the matrix); a call
/// with 1 or 2 columns runs at memory speed. To fuse what follows a product, ask for 32 or 64 rows at a time: the
/// activation format is local to blocks of 32, so the rows just computed can be passed on (SiLU, product) and quantized
/// by the same thread with quantize_act at act + act_offset_bytes(weight, first row of the slice).
struct MatmulKernels {
  std::string_view isa;  ///< "avx512", "avx_vnni", "avx2"

  bool supports(DType weight) const { return find(weight) != nullptr; }

  /// Bytes of one activation row for weights of this type: a multiple of 64, k a multiple of 32 for quantized types.
  size_t act_row_bytes(DType weight, int64_t k) const;

  /// Where activation k_begin (a multiple of 32) lies within an activation row.
  size_t act_offset_bytes(DType weight, int64_t k_begin) const;

  /// True if activations quantized for `a` serve weights of type `b` as they are.
  bool same_activations(DType a, DType b) const;

  /// Converts x[k] to the weight type's activation format (a copy for F32, F16, BF16). act: 4-byte aligned.
  /// Values must be finite: infinities and NaN give undefined values, not undefined behaviour.
  void quantize_act(DType weight, const float* x, void* act, int64_t k) const;

  /// See MatmulTask. `weight` must be supported.
  void matmul(DType weight, const MatmulTask& task) const;

  const MatmulKernel* find(DType weight) const;

  const MatmulKernel* const* table;  ///< by GGUF type id, kTypeIds entries, null where unsupported
  static constexpr int kTypeIds = 40;
};

/// Names of the instruction sets compiled in that this machine can run, best first (empty if it has not even AVX2).
std::vector<std::string> matmul_isa_names();

/// The kernels called `isa`, or null if this build or this machine does not have them. Lives as long as the program.
const MatmulKernels* matmul_kernels(std::string_view isa);

}  // namespace fathom::cpu
