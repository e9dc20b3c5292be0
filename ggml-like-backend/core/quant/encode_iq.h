// Encoders of the codebook formats: IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S and IQ1_S IQ1_M.
#pragma once

#include "core/quant/block_tools.h"
#include "core/quant/encode.h"
#include "core/quant/grid_block.h"
#include "core/quant/grid_nearest.h"

namespace fathom::quant::FATHOM_ISA {

/// Magnitudes and sign bits of eight elements. With `even`, the number of minus signs is made even by flipping the
/// element where that costs least; its target becomes negative, so that the search gives it a small magnitude.
inline uint8_t split_signs(const float* x, const float* w, bool even, float* magnitudes) {
  unsigned signs = 0;
  for (int j = 0; j < 8; ++j) {
    signs |= static_cast<unsigned>(x[j] < 0) << j;
    magnitudes[j] = magnitude(x[j]);
  }
  if (even && __builtin_popcount(signs) % 2 != 0) {
    int least = 0;
    for (int j = 1; j < 8; ++j) {
      if (w[j] * magnitudes[j] < w[least] * magnitudes[least]) least = j;
    }
    magnitudes[least] = -magnitudes[least];
    signs ^= 1u << least;
  }
  return static_cast<uint8_t>(signs);
}

/// A run of kPoints grid points under one scale: the choice of points for a given scale.
template <typename Grid, int kDim, int kPoints> struct GridRun {
  const Grid* grid;
  const float* target;  ///< kDim * kPoints magnitudes
  const float* w;

  struct Choice {
    ScaleFit fit;
    int indices[kPoints];
  };

  Choice choose(float scale) const {
    Choice choice;
    const float inverse = 1 / scale;
    for (int p = 0; p < kPoints; ++p) {
      float t[kDim];
      for (int j = 0; j < kDim; ++j) t[j] = target[p * kDim + j] * inverse;
      choice.indices[p] = nearest(*grid, t, w + p * kDim).index;
      const float* v = grid->point(choice.indices[p]);
      for (int j = 0; j < kDim; ++j) {
        const float wv = w[p * kDim + j] * v[j];
        choice.fit.xv += wv * target[p * kDim + j];
        choice.fit.vv += wv * v[j];
      }
    }
    return choice;
  }
};

/// The search common to IQ2 and IQ3. signs[i] belongs to elements 8i..8i+7.
template <typename Grid, int kDim, int kRunElements, int kTop> struct SignedGridEncoder {
  static constexpr int kRuns = kSuperBlock / kRunElements;
  static constexpr int kPoints = kRunElements / kDim;
  using Run = GridRun<Grid, kDim, kPoints>;

  GridBlock<Run, kRuns, kTop> block;
  uint8_t signs[kSuperBlock / 8] = {};

  void search(const Grid& grid, bool even_signs, const float* x, const float* w, float bell, float bottom, float top,
              int steps, float unit_of_d) {
    float scaled[kSuperBlock], magnitudes[kSuperBlock];
    const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
    if (scale.is_zero()) return;
    for (int g = 0; g < kSuperBlock / 8; ++g) {
      signs[g] = split_signs(scaled + 8 * g, w + 8 * g, even_signs, magnitudes + 8 * g);
    }
    Run runs[kRuns];
    float low[kRuns], high[kRuns];
    for (int b = 0; b < kRuns; ++b) {
      runs[b] = {&grid, magnitudes + b * kRunElements, w + b * kRunElements};
      scale_range(magnitudes + b * kRunElements, kRunElements, bell, bottom, top, &low[b], &high[b]);
    }
    block.search(scale, runs, low, high, steps, unit_of_d);
  }
  /// Grid index of point p of the whole block.
  unsigned index(int p) const { return static_cast<unsigned>(block.choices[p / kPoints].indices[p % kPoints]); }
  unsigned k(int run) const { return static_cast<unsigned>(block.k[run]); }
};

// Scale of a run over its rms that suits Gaussian values: where the outermost level meets 1.85 deviations.
constexpr float kIQ2Bell = 1.85f / 43;
constexpr float kIQ3XXSBell = 2.1f / 62;
constexpr float kIQ3SBell = 2.1f / 15;

inline void encode(const float* x, const float* w, BlockIQ2_XXS* out) {
  SignedGridEncoder<Grid8, 8, 32, 15> e;
  e.search(iq2_xxs_search(), true, x, w, kIQ2Bell, 8, 43, 12, 0.125f);
  out->d = e.block.d.bits;
  for (int ib = 0; ib < 8; ++ib) {
    uint32_t indices = 0, a = e.k(ib) << 28;
    for (int l = 0; l < 4; ++l) {
      indices |= e.index(4 * ib + l) << (8 * l);
      a |= (e.signs[4 * ib + l] & 127u) << (7 * l);
    }
    out->qs[4 * ib] = static_cast<uint16_t>(indices);
    out->qs[4 * ib + 1] = static_cast<uint16_t>(indices >> 16);
    out->qs[4 * ib + 2] = static_cast<uint16_t>(a);
    out->qs[4 * ib + 3] = static_cast<uint16_t>(a >> 16);
  }
}

inline void encode(const float* x, const float* w, BlockIQ2_XS* out) {
  SignedGridEncoder<Grid8, 8, 16, 15> e;
  e.search(iq2_xs_search(), true, x, w, kIQ2Bell, 8, 43, 12, 0.125f);
  out->d = e.block.d.bits;
  for (int g = 0; g < 32; ++g) out->qs[g] = static_cast<uint16_t>(e.index(g) | (e.signs[g] & 127u) << 9);
  for (int ib = 0; ib < 8; ++ib) out->scales[ib] = static_cast<uint8_t>(e.k(2 * ib) | e.k(2 * ib + 1) << 4);
}

inline void encode(const float* x, const float* w, BlockIQ2_S* out) {
  SignedGridEncoder<Grid8, 8, 16, 15> e;
  e.search(iq2_s_search(), false, x, w, kIQ2Bell, 8, 43, 12, 0.125f);
  __builtin_memset(out, 0, sizeof(*out));
  out->d = e.block.d.bits;
  for (int g = 0; g < 32; ++g) {
    out->qs[g] = static_cast<uint8_t>(e.index(g));
    out->qh[g / 4] |= static_cast<uint8_t>((e.index(g) >> 8) << (2 * (g % 4)));
    out->signs[g] = e.signs[g];
  }
  for (int ib = 0; ib < 8; ++ib) out->scales[ib] = static_cast<uint8_t>(e.k(2 * ib) | e.k(2 * ib + 1) << 4);
}

inline void encode(const float* x, const float* w, BlockIQ3_XXS* out) {
  SignedGridEncoder<Grid4, 4, 32, 15> e;
  e.search(iq3_xxs_search(), true, x, w, kIQ3XXSBell, 4, 62, 10, 0.25f);
  out->d = e.block.d.bits;
  for (int p = 0; p < 64; ++p) out->qs[p] = static_cast<uint8_t>(e.index(p));
  for (int ib = 0; ib < 8; ++ib) {
    uint32_t a = e.k(ib) << 28;
    for (int l = 0; l < 4; ++l) a |= (e.signs[4 * ib + l] & 127u) << (7 * l);
    out->signs_scale[ib] = a;
  }
}

inline void encode(const float* x, const float* w, BlockIQ3_S* out) {
  SignedGridEncoder<Grid4, 4, 32, 15> e;
  e.search(iq3_s_search(), false, x, w, kIQ3SBell, 1, 15, 10, 1.0f);
  __builtin_memset(out, 0, sizeof(*out));
  out->d = e.block.d.bits;
  for (int p = 0; p < 64; ++p) {
    out->qs[p] = static_cast<uint8_t>(e.index(p));
    out->qh[p / 8] |= static_cast<uint8_t>((e.index(p) >> 8) << (p % 8));
  }
  __builtin_memcpy(out->signs, e.signs, 32);
  for (int ib = 0; ib < 8; ++ib) out->scales[ib / 2] |= static_cast<uint8_t>(e.k(ib) << (4 * (ib & 1)));
}

}  // namespace fathom::quant::FATHOM_ISA
