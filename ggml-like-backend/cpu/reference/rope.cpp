// Rotary position embedding, and the ways of a token's row into the cache.
#include <algorithm>
#include <cmath>

#include "cpu/reference/reference.h"
#include "cpu/store_row.h"

namespace fathom::cpu::reference {
namespace {

/// Rotates the R numbers at x by the R/2 (cosine, sine) pairs at table, or back.
void rotate(float* x, const float* table, int64_t n_pairs, RopePairing pairing, bool inverse = false) {
  for (int64_t i = 0; i < n_pairs; ++i) {
    const int64_t first = pairing == RopePairing::kAdjacent ? 2 * i : i;
    const int64_t second = pairing == RopePairing::kAdjacent ? 2 * i + 1 : i + n_pairs;
    const float cosine = table[2 * i], sine = inverse ? -table[2 * i + 1] : table[2 * i + 1];
    const float x0 = x[first], x1 = x[second];
    x[first] = x0 * cosine - x1 * sine;
    x[second] = x0 * sine + x1 * cosine;
  }
}

}  // namespace

void rope_table(const RopeTableArgs& a, OpContext& c) {
  c.worker.share(a.positions.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = a.out.row_as<float>(t);
      for (int64_t i = 0; i < a.frequencies.dim(0); ++i) {
        // In double: at position 100,000 a float angle would be off by 0.004 radians.
        const double angle =
            static_cast<double>(a.positions.as<int32_t>()[t]) * static_cast<double>(a.frequencies.as<float>()[i]);
        out[2 * i] = static_cast<float>(std::cos(angle));
        out[2 * i + 1] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void rotate_heads(const RotateHeadsArgs& a, OpContext& c) {
  const int64_t n_heads = a.x.dim(1), head_dim = a.x.dim(2), n_pairs = a.table.dim(1);
  c.worker.share(a.x.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = a.out.row_as<float>(t);
      std::copy_n(a.x.row_as<float>(t), n_heads * head_dim, out);
      for (int64_t h = 0; h < n_heads; ++h)
        rotate(out + h * head_dim + a.first_dim, a.table.row_as<float>(t), n_pairs, a.pairing, a.inverse);
    }
  });
}

void store_latent(const StoreLatentArgs& a, OpContext& c) {
  const int64_t n_latent = a.norm_weight.dim(0), n_pairs = a.rope_table.dim(1), n_row = a.kv_a.dim(1);
  c.worker.share(a.kv_a.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = reinterpret_cast<float*>(c.own);
      std::copy_n(a.kv_a.row_as<float>(t), n_row, row);
      double squares = 0;
      for (int64_t i = 0; i < n_latent; ++i) squares += static_cast<double>(row[i]) * row[i];
      const float scale =
          static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n_latent) + static_cast<double>(a.eps)));
      for (int64_t i = 0; i < n_latent; ++i) row[i] = row[i] * scale * a.norm_weight.as<float>()[i];
      rotate(row + n_row - 2 * n_pairs, a.rope_table.row_as<float>(t), n_pairs, a.pairing);
      store_row(a.cache.dtype, row, cache_row(a.cache, a.slots.as<int32_t>()[t]), n_row);
    }
  });
}

Workspace store_latent_workspace(const StoreLatentArgs& a) {
  return {0, static_cast<size_t>(a.kv_a.dim(1)) * sizeof(float)};
}

void store_rows(const StoreRowsArgs& a, OpContext& c) {
  c.worker.share(a.x.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      store_row(a.cache.dtype, a.x.row_as<float>(t), cache_row(a.cache, a.slots.as<int32_t>()[t]), a.x.dim(1));
  });
}

void store_key_value(const StoreKeyValueArgs& a, OpContext& c) {
  const int64_t n = a.k.dim(1) * a.k.dim(2);
  c.worker.share(a.k.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::byte* row = cache_row(a.cache, a.slots.as<int32_t>()[t]);
      store_row(a.cache.dtype, a.k.row_as<float>(t), row, n);
      store_row(a.cache.dtype, a.v.row_as<float>(t), row + row_bytes(a.cache.dtype, n), n);
    }
  });
}

}  // namespace fathom::cpu::reference
