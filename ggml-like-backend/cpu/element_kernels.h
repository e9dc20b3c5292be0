// Row-wise kernels of one instruction set: norms, sums, SiLU.
#pragma once

#include <cstdint>
#include <string_view>

namespace fathom::cpu {

/// Thread-safe. Each result depends on its own row alone. Vectors need no alignment and must not overlap but where
/// said.
struct ElementKernels {
  /// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; weight may be null: ones
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t n);
  /// out[i] = a[i] + b[i]; out may be a or b.
  void (*add)(const float* a, const float* b, float* out, int64_t n);
  /// gate[i] = silu(min(gate[i], limit)) * max(-limit, min(up[i], limit)), with e^x to 2 units in the last place.
  void (*silu_times)(float* gate, const float* up, float limit, int64_t n);
  /// out[i] += weight * x[i]
  void (*add_scaled)(const float* x, float weight, float* out, int64_t n);
  double (*sum_squares)(const float* x, int64_t n);
  /// out[i] = sum over r of weights[r] * rows[r][i], in order
  void (*weigh_rows)(const float* const* rows, const float* weights, int n_rows, float* out, int64_t n);
  /// out[i] = sum over r of softmax over r of (gates[r][i]) * values[r][i]
  void (*pool_rows)(const float* const* values, const float* const* gates, int n_rows, float* out, int64_t n);
};

/// For a name of matmul_isa_names().
const ElementKernels* element_kernels(std::string_view isa);

}  // namespace fathom::cpu
