// Encoders of the 256-element formats with integer sub-scales: Q2_K to Q6_K and IQ4_XS.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/quant/affine_search.h"
#include "core/quant/encode.h"
#include "core/quant/scale_search.h"

namespace fathom::quant {
namespace {

/// y = d * k * q - dmin * m: kRuns runs of kCount elements, q in 0..kTop, k and m in 0..kMax.
template <int kTop, int kCount, int kMax>
struct AffineRuns {
  static constexpr int kRuns = kSuperBlock / kCount;
  HalfFactor d, dmin;
  int k[kRuns] = {};
  int m[kRuns] = {};
  uint8_t codes[kSuperBlock] = {};

  void search(const float* x, const float* w, int tries, float clip, int factor_tries) {
    float scaled[kSuperBlock];
    const BlockScale scale(x, kSuperBlock, scaled);
    if (scale.is_zero()) return;
    AffineFit fits[kRuns];
    for (int b = 0; b < kRuns; ++b) {
      fits[b] = search_affine<kTop, kCount>(scaled + b * kCount, w + b * kCount, Shift::kNotNegative, tries, clip);
    }
    float factor = 0, min_factor = 0;
    search_factors(fits, factor_tries, &factor, &min_factor);
    for (int round = 0; round < 3; ++round) {
      d = scale.to_half(factor);
      dmin = scale.to_half(min_factor);
      for (int b = 0; b < kRuns; ++b) settle(scaled + b * kCount, w + b * kCount, &fits[b], &k[b], &m[b]);
      solve_factors(fits, k, m, &factor, &min_factor);
    }
    for (int b = 0; b < kRuns; ++b) {
      affine_codes<kTop, kCount>(scaled + b * kCount, d.value * static_cast<float>(k[b]),
                                 dmin.value * static_cast<float>(m[b]), codes + b * kCount);
    }
  }

 private:
  static int clamp_k(float v) { return static_cast<int>(std::lround(std::clamp(v, 0.0f, static_cast<float>(kMax)))); }

  static int nearest_k(const AffineFit& f, float factor) { return factor > 0 ? clamp_k(f.scale / factor) : 0; }

  /// The best m once the scale is s, as long as q stays.
  static int nearest_m(const AffineFit& f, float s, float min_factor) {
    return min_factor > 0 ? clamp_k((s * f.wq - f.wx) / (f.w * min_factor)) : 0;
  }

  /// d and dmin by trial: the largest scale at kMax or up to a few steps below, the largest shift likewise.
  static void search_factors(const AffineFit* fits, int tries, float* factor, float* min_factor) {
    float largest_scale = 0, largest_shift = 0;
    for (int b = 0; b < kRuns; ++b) {
      largest_scale = std::max(largest_scale, fits[b].scale);
      largest_shift = std::max(largest_shift, fits[b].shift);
    }
    float best_error = INFINITY;
    for (int i = 0; i < tries; ++i) {
      const float f = largest_scale / (static_cast<float>(kMax) + 0.25f - 0.5f * static_cast<float>(i));
      for (int j = 0; j < (largest_shift > 0 ? tries : 1); ++j) {
        const float g = largest_shift / (static_cast<float>(kMax) + 0.25f - 0.5f * static_cast<float>(j));
        float error = 0;
        for (int b = 0; b < kRuns; ++b) {
          const float s = f * static_cast<float>(nearest_k(fits[b], f));
          error += fits[b].error_at(s, g * static_cast<float>(nearest_m(fits[b], s, g)));
        }
        if (error < best_error) {
          best_error = error;
          *factor = f;
          *min_factor = g;
        }
      }
    }
  }

  /// With d and dmin fixed, the best integers near the run's optimum, q chosen anew for each pair.
  void settle(const float* x, const float* w, AffineFit* fit, int* best_k, int* best_m) const {
    const int k0 = nearest_k(*fit, d.value);
    float best_error = INFINITY;
    AffineFit best = *fit;
    for (int ki = std::max(0, k0 - 1); ki <= std::min(kMax, k0 + 1); ++ki) {
      const float s = d.value * static_cast<float>(ki);
      const int m0 = nearest_m(*fit, s, dmin.value);
      for (int mi = std::max(0, m0 - 1); mi <= std::min(kMax, m0 + 1); ++mi) {
        const float shift = dmin.value * static_cast<float>(mi);
        const AffineFit f = fit_affine<kTop, kCount>(x, w, s, shift);
        const float error = f.error_at(s, shift);
        if (error < best_error) {
          best_error = error;
          best = f;
          *best_k = ki;
          *best_m = mi;
        }
      }
    }
    solve(&best, Shift::kNotNegative);
    *fit = best;
  }

  /// d and dmin by least squares for fixed q, k and m.
  static void solve_factors(const AffineFit* fits, const int* k, const int* m, float* factor, float* min_factor) {
    double kk = 0, km = 0, mm = 0, kx = 0, mx = 0;
    for (int b = 0; b < kRuns; ++b) {
      const double kb = k[b], mb = m[b];
      kk += kb * kb * fits[b].wqq;
      km += kb * mb * fits[b].wq;
      mm += mb * mb * fits[b].w;
      kx += kb * fits[b].wxq;
      mx += mb * fits[b].wx;
    }
    const double det = kk * mm - km * km;
    if (det > 1e-9 * kk * mm) {
      const double f = (kx * mm - mx * km) / det;
      const double g = (kx * km - mx * kk) / det;
      if (f > 0 && g > 0) {
        *factor = static_cast<float>(f);
        *min_factor = static_cast<float>(g);
      }
    } else if (kk > 0 && mm == 0 && kx > 0) {
      *factor = static_cast<float>(kx / kk);
    } else if (mm > 0 && kk == 0 && mx < 0) {
      *min_factor = static_cast<float>(-mx / mm);
    }
  }
};

/// The 12 bytes that get_scale_min reads.
void pack_scale_min(const int* k, const int* m, uint8_t* packed) {
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<uint8_t>(k[j] | (k[j + 4] >> 4) << 6);
    packed[j + 4] = static_cast<uint8_t>(m[j] | (m[j + 4] >> 4) << 6);
    packed[j + 8] = static_cast<uint8_t>((k[j + 4] & 15) | (m[j + 4] & 15) << 4);
  }
}

/// Nibbles of 256 codes in the order of Q4_K and Q5_K.
void pack_low_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      qs[32 * g + l] = static_cast<uint8_t>((codes[64 * g + l] & 15) | (codes[64 * g + 32 + l] & 15) << 4);
    }
  }
}

/// Two bits of 256 codes in the order of Q2_K and Q3_K.
void pack_pairs(const uint8_t* codes, uint8_t* qs) {
  for (int half = 0; half < 2; ++half) {
    for (int l = 0; l < 32; ++l) {
      int byte = 0;
      for (int s = 0; s < 4; ++s) byte |= (codes[128 * half + 32 * s + l] & 3) << (2 * s);
      qs[32 * half + l] = static_cast<uint8_t>(byte);
    }
  }
}

}  // namespace

void encode(const float* x, const float* w, BlockQ2_K* out) {
  AffineRuns<3, 16, 15> runs;
  runs.search(x, w, 5, 1.0f, 8);
  for (int b = 0; b < 16; ++b) out->scales[b] = static_cast<uint8_t>(runs.k[b] | runs.m[b] << 4);
  pack_pairs(runs.codes, out->qs);
  out->d = runs.d.bits;
  out->dmin = runs.dmin.bits;
}

void encode(const float* x, const float* w, BlockQ4_K* out) {
  AffineRuns<15, 32, 63> runs;
  runs.search(x, w, 6, 1.5f, 6);
  out->d = runs.d.bits;
  out->dmin = runs.dmin.bits;
  pack_scale_min(runs.k, runs.m, out->scales);
  pack_low_nibbles(runs.codes, out->qs);
}

void encode(const float* x, const float* w, BlockQ5_K* out) {
  AffineRuns<31, 32, 63> runs;
  runs.search(x, w, 5, 1.5f, 8);
  out->d = runs.d.bits;
  out->dmin = runs.dmin.bits;
  pack_scale_min(runs.k, runs.m, out->scales);
  pack_low_nibbles(runs.codes, out->qs);
  for (int l = 0; l < 32; ++l) {
    int byte = 0;
    for (int j = 0; j < 8; ++j) byte |= (runs.codes[32 * j + l] >> 4) << j;
    out->qh[l] = static_cast<uint8_t>(byte);
  }
}

void encode(const float* x, const float* w, BlockQ3_K* out) {
  std::memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale(x, kSuperBlock, scaled);
  ScaledRuns<IntegerLevels<-4, 3>, 16, -32, 31> runs;
  runs.search(scale, scaled, w, 0.6f, 1.15f, 16);
  pack_pairs(runs.codes, out->qs);
  for (int l = 0; l < 32; ++l) {
    int byte = 0;
    for (int j = 0; j < 8; ++j) byte |= (runs.codes[32 * j + l] >> 2) << j;
    out->hmask[l] = static_cast<uint8_t>(byte);
  }
  for (int j = 0; j < 16; ++j) {
    const int sc = runs.k[j] + 32;
    out->scales[j % 8] |= static_cast<uint8_t>((sc & 15) << (j < 8 ? 0 : 4));
    out->scales[8 + j % 4] |= static_cast<uint8_t>((sc >> 4) << (2 * (j / 4)));
  }
  out->d = runs.d.bits;
}

void encode(const float* x, const float* w, BlockQ6_K* out) {
  std::memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale(x, kSuperBlock, scaled);
  ScaledRuns<IntegerLevels<-32, 31>, 16, -128, 127> runs;
  runs.search(scale, scaled, w, 0.94f, 1.04f, 11);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, k = i % 128 / 32, l = i % 32;
    out->ql[half * 64 + (k & 1) * 32 + l] |= static_cast<uint8_t>((runs.codes[i] & 15) << (k < 2 ? 0 : 4));
    out->qh[half * 32 + l] |= static_cast<uint8_t>((runs.codes[i] >> 4) << (2 * k));
  }
  for (int b = 0; b < 16; ++b) out->scales[b] = static_cast<int8_t>(runs.k[b]);
  out->d = runs.d.bits;
}

void encode(const float* x, const float* w, BlockIQ4_XS* out) {
  std::memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale(x, kSuperBlock, scaled);
  ScaledRuns<IQ4Levels, 32, -32, 31> runs;
  runs.search(scale, scaled, w, 0.7f, 1.2f, 13);
  for (int ib = 0; ib < 8; ++ib) {
    const int ls = runs.k[ib] + 32;
    out->scales_l[ib / 2] |= static_cast<uint8_t>((ls & 15) << (4 * (ib & 1)));
    out->scales_h = static_cast<uint16_t>(out->scales_h | (ls >> 4) << (2 * ib));
    for (int j = 0; j < 16; ++j) {
      const uint8_t* codes = runs.codes + 32 * ib;
      out->qs[16 * ib + j] = static_cast<uint8_t>(codes[j] | codes[j + 16] << 4);
    }
  }
  out->d = runs.d.bits;
}

}  // namespace fathom::quant
