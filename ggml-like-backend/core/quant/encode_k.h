// Encoders of the 256-element formats with integer sub-scales: Q2_K to Q6_K and IQ4_XS.
#pragma once

#include "core/quant/affine_search.h"
#include "core/quant/block_tools.h"
#include "core/quant/encode.h"
#include "core/quant/scale_search.h"

namespace fathom::quant::FATHOM_ISA {

/// y = d * k * q - dmin * m: kRuns runs of kCount elements, q in 0..kTop, k and m in 0..kMax.
template <int kTop, int kCount, int kMax> struct AffineRuns {
  static constexpr int kRuns = kSuperBlock / kCount;
  HalfFactor d, dmin;
  int k[kRuns] = {};
  int m[kRuns] = {};
  uint8_t codes[kSuperBlock] = {};

  template <int kTries, int kFactorTries, float kClip> void search(const float* x, const float* w) {
    float scaled[kSuperBlock];
    const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
    if (scale.is_zero()) return;
    AffineFit fits[kRuns];
    for (int b = 0; b < kRuns; ++b) {
      fits[b] = search_affine<kTop, kCount, kTries, kClip>(scaled + b * kCount, w + b * kCount, Shift::kNotNegative);
    }
    float factor = 0, min_factor = 0;
    search_factors<kFactorTries>(fits, &factor, &min_factor);
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
  static float clamp_k(float v) { return round_clamped(v, 0, kMax); }

  /// d and dmin by trial: the largest scale at kMax or up to a few steps below, the largest shift likewise.
  template <int kTries> static void search_factors(const AffineFit* fits, float* factor, float* min_factor) {
    constexpr int kTrials = kTries * kTries;
    float largest_scale = 0, largest_shift = 0;
    for (int b = 0; b < kRuns; ++b) {
      largest_scale = most_of(largest_scale, fits[b].scale);
      largest_shift = most_of(largest_shift, fits[b].shift);
    }
    if (largest_scale == 0 && largest_shift == 0) return;
    alignas(64) float f[trial_room(kTrials)], g[trial_room(kTrials)], error[trial_room(kTrials)];
    for (int t = 0; t < whole_lanes(kTrials); ++t) {
      const int i = least_of(t, kTrials - 1) / kTries, j = least_of(t, kTrials - 1) % kTries;
      f[t] = largest_scale / (kMax + 0.25f - 0.5f * static_cast<float>(i));
      g[t] = largest_shift / (kMax + 0.25f - 0.5f * static_cast<float>(j));
    }
    for (int t = 0; t < kTrials; t += kTrialLanes) {
      const VT ft = load<VT>(f + t), gt = load<VT>(g + t), zero = splat<VT>(0);
      const VT f_inverse = ft > zero ? 1.0f / ft : zero, g_inverse = gt > zero ? 1.0f / gt : zero;
      VT sum = zero;
      for (int b = 0; b < kRuns; ++b) {
        const AffineFit& r = fits[b];
        const VT s = ft * round_clamped(f_inverse * r.scale, 0, kMax);
        const VT m = gt * round_clamped((s * r.wq - r.wx) / r.w * g_inverse, 0, kMax);
        sum += r.wxx + s * (s * r.wqq - 2.0f * r.wxq) + m * (2.0f * (r.wx - s * r.wq) + m * r.w);
      }
      store(error + t, sum);
    }
    int best = 0;
    for (int t = 1; t < kTrials; ++t) best = error[t] < error[best] ? t : best;
    *factor = f[best];
    *min_factor = g[best];
  }

  /// With d and dmin fixed, the best integers near the run's optimum, q chosen anew for each pair.
  void settle(const float* x, const float* w, AffineFit* fit, int* best_k, int* best_m) const {
    const float k0 = d.value > 0 ? clamp_k(fit->scale / d.value) : 0;
    float ks[9], ms[9];
    AffineTrials<9> trials;
    for (int i = 0; i < 3; ++i) {
      const float k_i = round_clamped(k0 + static_cast<float>(i - 1), 0, kMax), s = d.value * k_i;
      const float m0 =
          dmin.value > 0 ? clamp_k((s * fit->wq - fit->wx) / (fit->w * dmin.value)) : 0;  // as long as q stays
      for (int j = 0; j < 3; ++j) {
        const int t = 3 * i + j;
        ks[t] = k_i;
        ms[t] = round_clamped(m0 + static_cast<float>(j - 1), 0, kMax);
        trials.scale[t] = s;
        trials.shift[t] = dmin.value * ms[t];
      }
    }
    trials.template sum<kTop, kCount>(x, w);
    trials.judge(*fit);
    const int t = trials.best();
    *best_k = static_cast<int>(ks[t]);
    *best_m = static_cast<int>(ms[t]);
    AffineFit best = trials.fit(t, *fit);
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
inline void pack_scale_min(const int* k, const int* m, uint8_t* packed) {
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<uint8_t>(k[j] | (k[j + 4] >> 4) << 6);
    packed[j + 4] = static_cast<uint8_t>(m[j] | (m[j + 4] >> 4) << 6);
    packed[j + 8] = static_cast<uint8_t>((k[j + 4] & 15) | (m[j + 4] & 15) << 4);
  }
}

/// Nibbles of 256 codes in the order of Q4_K and Q5_K.
inline void pack_low_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      qs[32 * g + l] = static_cast<uint8_t>((codes[64 * g + l] & 15) | (codes[64 * g + 32 + l] & 15) << 4);
    }
  }
}

/// Two bits of 256 codes in the order of Q2_K and Q3_K.
inline void pack_pairs(const uint8_t* codes, uint8_t* qs) {
  for (int half = 0; half < 2; ++half) {
    for (int l = 0; l < 32; ++l) {
      int byte = 0;
      for (int s = 0; s < 4; ++s) byte |= (codes[128 * half + 32 * s + l] & 3) << (2 * s);
      qs[32 * half + l] = static_cast<uint8_t>(byte);
    }
  }
}

inline void encode(const float* x, const float* w, BlockQ2_K* out) {
  AffineRuns<3, 16, 15> runs;
  runs.search<5, 8, 1.0f>(x, w);
  for (int b = 0; b < 16; ++b) out->scales[b] = static_cast<uint8_t>(runs.k[b] | runs.m[b] << 4);
  pack_pairs(runs.codes, out->qs);
  out->d = runs.d.bits;
  out->dmin = runs.dmin.bits;
}

inline void encode(const float* x, const float* w, BlockQ4_K* out) {
  AffineRuns<15, 32, 63> runs;
  runs.search<6, 6, 1.5f>(x, w);
  out->d = runs.d.bits;
  out->dmin = runs.dmin.bits;
  pack_scale_min(runs.k, runs.m, out->scales);
  pack_low_nibbles(runs.codes, out->qs);
}

inline void encode(const float* x, const float* w, BlockQ5_K* out) {
  AffineRuns<31, 32, 63> runs;
  runs.search<5, 8, 1.5f>(x, w);
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

inline void encode(const float* x, const float* w, BlockQ3_K* out) {
  __builtin_memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
  ScaledRuns<IntegerLevels<-4, 3>, 16, -32, 31> runs;
  runs.search<16, 0.6f, 1.15f>(scale, scaled, w);
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

inline void encode(const float* x, const float* w, BlockQ6_K* out) {
  __builtin_memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
  ScaledRuns<IntegerLevels<-32, 31>, 16, -128, 127> runs;
  runs.search<11, 0.94f, 1.04f>(scale, scaled, w);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128, k = i % 128 / 32, l = i % 32;
    out->ql[half * 64 + (k & 1) * 32 + l] |= static_cast<uint8_t>((runs.codes[i] & 15) << (k < 2 ? 0 : 4));
    out->qh[half * 32 + l] |= static_cast<uint8_t>((runs.codes[i] >> 4) << (2 * k));
  }
  for (int b = 0; b < 16; ++b) out->scales[b] = static_cast<int8_t>(runs.k[b]);
  out->d = runs.d.bits;
}

inline void encode(const float* x, const float* w, BlockIQ4_XS* out) {
  __builtin_memset(out, 0, sizeof(*out));
  float scaled[kSuperBlock];
  const BlockScale scale = scaled_block<kSuperBlock>(x, scaled);
  ScaledRuns<IQ4Levels, 32, -32, 31> runs;
  runs.search<13, 0.7f, 1.2f>(scale, scaled, w);
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

}  // namespace fathom::quant::FATHOM_ISA
