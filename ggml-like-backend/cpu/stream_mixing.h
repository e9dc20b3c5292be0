// The coefficients of a token's hyper-connection: a few dozen numbers, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/node.h"

namespace fathom::cpu {

constexpr int64_t kMostStreams = 16;  // ops/hyper_connections.h

/// Writes token t's row of a.mixing (where there is one) and its input coefficients pre [M]. `squares`: the sum over
/// all streams.
inline void stream_coefficients(const CollapseStreamsArgs& a, int64_t t, double squares, double* pre) {
  const int64_t m = a.n_streams();
  const float* products = a.products.row_as<float>(t);
  const float* base = a.base.as<float>();
  const float* scale = a.scale.as<float>();
  const double eps = static_cast<double>(a.eps);
  const double r = 1.0 / std::sqrt(squares / static_cast<double>(a.streams.dim(1)) + static_cast<double>(a.norm_eps));
  const auto value = [&](int64_t i, int64_t part) {
    return static_cast<double>(products[i]) * r * static_cast<double>(scale[part]) + static_cast<double>(base[i]);
  };
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  for (int64_t i = 0; i < m; ++i) pre[i] = sigmoid(value(i, 0)) + eps;
  if (!a.mixing) return;

  float* post = a.mixing.row_as<float>(t);
  for (int64_t i = 0; i < m; ++i) post[i] = static_cast<float>(2 * sigmoid(value(m + i, 1)));
  double matrix[kMostStreams][kMostStreams];
  for (int64_t i = 0; i < m; ++i) {
    double largest = -HUGE_VAL, sum = 0;
    for (int64_t k = 0; k < m; ++k) largest = std::max(largest, matrix[i][k] = value(2 * m + i * m + k, 2));
    for (int64_t k = 0; k < m; ++k) sum += matrix[i][k] = std::exp(matrix[i][k] - largest);
    for (int64_t k = 0; k < m; ++k) matrix[i][k] = matrix[i][k] / sum + eps;
  }
  const auto divide_rows = [&] {
    for (int64_t i = 0; i < m; ++i) {
      double sum = eps;
      for (int64_t k = 0; k < m; ++k) sum += matrix[i][k];
      for (int64_t k = 0; k < m; ++k) matrix[i][k] /= sum;
    }
  };
  const auto divide_columns = [&] {
    for (int64_t k = 0; k < m; ++k) {
      double sum = eps;
      for (int64_t i = 0; i < m; ++i) sum += matrix[i][k];
      for (int64_t i = 0; i < m; ++i) matrix[i][k] /= sum;
    }
  };
  divide_columns();
  for (int round = 1; round < a.iterations; ++round) divide_rows(), divide_columns();
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t k = 0; k < m; ++k) post[m + i * m + k] = static_cast<float>(matrix[i][k]);
  }
}

}  // namespace fathom::cpu
