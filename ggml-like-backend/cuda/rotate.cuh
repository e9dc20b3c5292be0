// Rotary position embedding of one element.
#pragma once

#include "core/node.h"
#include "cuda/device.h"

namespace fathom::cuda {

/// Of heads of head_dim elements, those from first_dim on are rotated in n_pairs pairs.
struct Rotation {
  int head_dim, first_dim, n_pairs;
  bool is_adjacent;
  bool is_inverse = false;  ///< by the negative angles
};

inline Rotation rotation_of(const RotateHeadsArgs& a) {
  return {static_cast<int>(a.x.dim(2)), a.first_dim, static_cast<int>(a.table.dim(1)),
          a.pairing == RopePairing::kAdjacent, a.inverse};
}

/// Element i of a rotated row, of which x(i) is before; `table` is the token's, (cosine, sine) for each pair.
template <typename X> FATHOM_DEVICE float rotated_value(X&& x, int i, const float* table, const Rotation& r) {
  const int d = i % r.head_dim - r.first_dim;
  if (d < 0 || d >= 2 * r.n_pairs) return x(i);
  const int pair = r.is_adjacent ? d / 2 : d % r.n_pairs;
  const bool is_second = r.is_adjacent ? d % 2 == 1 : d >= r.n_pairs;
  const int apart = r.is_adjacent ? 1 : r.n_pairs;
  const float cosine = table[2 * pair], sine = r.is_inverse ? -table[2 * pair + 1] : table[2 * pair + 1];
  return is_second ? fmaf(x(i), cosine, x(i - apart) * sine) : fmaf(x(i), cosine, -(x(i + apart) * sine));
}
FATHOM_DEVICE float rotated(const float* x, int i, const float* table, const Rotation& r) {
  return rotated_value([x](int j) { return x[j]; }, i, table, r);
}

}  // namespace fathom::cuda
