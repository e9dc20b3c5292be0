// Weights on the host and on the device, and the float64 product they should give.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/quant/dequantize.h"
#include "cuda/device_array.h"
#include "cuda/matmul.h"
#include "cuda/weight_layout.h"
#include "support/random_weights.h"

namespace fathom::test {

inline const std::vector<DType>& weight_types() {
  static const std::vector<DType> types = {
      DType::kF32,   DType::kF16,     DType::kBF16,   DType::kF8_E4M3, DType::kQ4_0,    DType::kQ4_1,
      DType::kQ5_0,  DType::kQ5_1,    DType::kQ8_0,   DType::kQ2_K,    DType::kQ3_K,    DType::kQ4_K,
      DType::kQ5_K,  DType::kQ6_K,    DType::kIQ4_NL, DType::kIQ4_XS,  DType::kMXFP4,   DType::kIQ1_S,
      DType::kIQ1_M, DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S,   DType::kIQ3_XXS, DType::kIQ3_S};
  return types;
}

inline std::vector<float> random_floats(size_t n, std::mt19937& rng, float scale = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> v(n);
  for (float& x : v) x = scale * normal(rng) * (rng() % 50 == 0 ? 8.0f : 1.0f);
  return v;
}

/// Activations as the kernels round them: one scale for 32, to nearest.
inline std::vector<float> rounded(std::vector<float> x) {
  for (size_t b = 0; b + 32 <= x.size(); b += 32) {
    float top = 0;
    for (size_t i = 0; i < 32; ++i) top = std::max(top, std::fabs(x[b + i]));
    for (size_t i = 0; i < 32; ++i)
      x[b + i] = top == 0 ? 0 : std::nearbyint(x[b + i] * (127.0f / top)) * (top / 127.0f);
  }
  return x;
}

/// Matrices [n_matrices, rows, k] in a file's layout, arranged on the device.
struct TestWeights {
  DType type;
  int64_t n_matrices, rows, k;
  std::vector<std::byte> file;
  std::vector<float> values;  ///< decoded
  std::unique_ptr<DeviceArray<std::byte>> device;

  TestWeights(DType type_, int64_t n_matrices_, int64_t rows_, int64_t k_, std::mt19937& rng)
      : type(type_), n_matrices(n_matrices_), rows(rows_), k(k_) {
    const size_t n_rows = static_cast<size_t>(n_matrices * rows), file_row = row_bytes(type, k);
    file.resize(n_rows * file_row);
    fill_weights(type, file.data(), file.size(), rng);
    values.resize(n_rows * static_cast<size_t>(k));
    for (size_t r = 0; r < n_rows; ++r)
      dequantize_row(type, file.data() + r * file_row, values.data() + r * static_cast<size_t>(k), k);
    DeviceArray<std::byte> raw(file);
    device = std::make_unique<DeviceArray<std::byte>>(n_rows * static_cast<size_t>(cuda::weight_row_bytes(type, k)));
    cuda::arrange_weights(type, raw.data(), static_cast<int64_t>(n_rows), k, device->data(), nullptr);
    cuda_ok(cudaDeviceSynchronize());
  }

  Tensor tensor() const {
    Tensor t(type, n_matrices == 1 ? Shape{rows, k} : Shape{n_matrices, rows, k}, device->data());
    const size_t at = static_cast<size_t>(t.shape.rank - 1);
    t.strides_bytes[at - 1] = cuda::weight_row_bytes(type, k);
    if (at == 2) t.strides_bytes[0] = rows * t.strides_bytes[1];
    return t;
  }
  const float* row(int64_t matrix, int64_t r) const { return values.data() + (matrix * rows + r) * k; }
  bool quantized() const { return dtype_info(type).is_quantized; }
};

struct Product {
  double value = 0, norm = 0;  ///< norm: the sum of the magnitudes, what errors are measured against
};
inline Product product(const float* w, const float* x, int64_t k) {
  Product p;
  for (int64_t i = 0; i < k; ++i) {
    const double v = static_cast<double>(w[i]) * static_cast<double>(x[i]);
    p.value += v;
    p.norm += std::fabs(v);
  }
  return p;
}

/// A context with a workspace of the size asked for, NaN bytes in it, and the grids.
class TestContext {
 public:
  explicit TestContext(size_t workspace_bytes)
      : workspace_(workspace_bytes), counters_(std::vector<int32_t>(cuda::kMatmulCounters, 0)), grids_(grids()) {}
  cuda::MatmulContext context(cuda::Stream stream = nullptr) const {
    return {stream, workspace_.data(), grids_.data(), counters_.data()};
  }
  /// Guards are whole and the counters are zero.
  void check() const {
    workspace_.download();
    const std::vector<int32_t> counters = counters_.download();
    CHECK(std::all_of(counters.begin(), counters.end(), [](int32_t c) { return c == 0; }));
  }

 private:
  static std::vector<std::byte> grids() {
    std::vector<std::byte> host(cuda::grid_tables_bytes());
    cuda::write_grid_tables(host.data());
    return host;
  }
  DeviceArray<std::byte> workspace_;
  DeviceArray<int32_t> counters_;
  DeviceArray<std::byte> grids_;
};

}  // namespace fathom::test
