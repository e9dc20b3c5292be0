// Attention kernels over a vector type S, compiled once for each instruction set that includes this. S has
//   kLanes, kPack, kRowTile (rows of a score tile), kMixTile (lanes of a mix tile), F (vector of floats), W (of words);
//   zero, set, load, store, add, mul, fma, max, exp (0 below -87), select_below(i, limit, x): lanes with i < limit keep
//   x, the others become -infinity; load_words, dot(acc, words, a): acc + words * the word at `a` for all lanes;
//   total(x): sum of the lanes; tail(n): mask of the first n lanes; load_rows(rows, i): words from column i on of kPack
//   rows; load_tail, store_tail, load_rows_tail: under a mask; round_pair(p0, p1, words, sum): packs two (pack 1:
//   stores p0) and adds what was stored to sum.
// Everything is static: each instruction set has its own copy.
#pragma once

#include "cpu/attention_kernels.h"

namespace fathom::cpu {

/// With the first panel the rows ahead are fetched into the second-level cache, a line of 64 bytes for every step: the
/// cache's pages lie anywhere, and the processor does not foresee 16 streams of a few lines each. (Half a tile of rows
/// has half as many lines; a few rows that are left fetch for those after them.)
template <typename S, int kRows, int kPanels>
static inline void multiply_tile(const MultiplyTask& t, int64_t row, int64_t panel) {
  const std::byte* a = t.a + row * t.a_stride_bytes;
  const int64_t stride = t.a_stride_bytes;
  const std::byte* ahead = panel == 0 && t.ahead != nullptr ? t.ahead + row * t.ahead_stride_bytes : nullptr;
  const uint32_t* b = t.b + panel * t.b_panel_words;
  float* c = t.c + row * t.c_stride + panel * t.c_panel_stride;
  constexpr int kAheadRows = kPanels == 2 ? kRows : 16;
  const int64_t ahead_steps = kPanels == 2 ? t.n_steps * kRows / 16 : t.n_steps;
  typename S::F acc[kRows][kPanels];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      acc[m][p] = t.add ? S::load(c + m * t.c_stride + p * t.c_panel_stride) : S::zero();
    }
  }
  for (int64_t k = 0; k < t.n_steps; ++k) {
    if (ahead != nullptr && k < ahead_steps)
      __builtin_prefetch(ahead + k % kAheadRows * t.ahead_stride_bytes + k / kAheadRows * 64, 0, 2);
    typename S::W words[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) words[p] = S::load_words(b + p * t.b_panel_words);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[m][p] = S::dot(acc[m][p], words[p], a + m * stride + 4 * k);
    }
    b += t.b_step_words;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) S::store(c + m * t.c_stride + p * t.c_panel_stride, acc[m][p]);
  }
}

/// n rows, fewer than a tile. One or two rows take several panels at once, for enough sums to be under way together.
template <typename S, int kRows> static inline void multiply_rest(const MultiplyTask& t, int64_t row, int64_t n) {
  if constexpr (kRows > 0) {
    if (n != kRows) return multiply_rest<S, kRows - 1>(t, row, n);
    constexpr int kPanels = kRows <= 2 ? 4 : 1;
    int64_t panel = 0;
    for (; panel + kPanels <= t.n_panels; panel += kPanels) multiply_tile<S, kRows, kPanels>(t, row, panel);
    for (; panel < t.n_panels; ++panel) multiply_tile<S, kRows, 1>(t, row, panel);
  }
}

/// Rows in the outer loop: a tile of A stays in the first-level cache while the panels of B pass. Two panels at a time
/// where there are two: a word of A is then read for two products, and loads keep up with multiplications.
template <typename S> static void multiply(const MultiplyTask& t) {
  constexpr int kHalf = S::kRowTile / 2;
  int64_t row = 0;
  for (; t.n_panels > 1 && row + kHalf <= t.n_rows; row += kHalf) {
    int64_t panel = 0;
    for (; panel + 2 <= t.n_panels; panel += 2) multiply_tile<S, kHalf, 2>(t, row, panel);
    if (panel < t.n_panels) multiply_tile<S, kHalf, 1>(t, row, panel);
  }
  for (; row + S::kRowTile <= t.n_rows; row += S::kRowTile) {
    for (int64_t panel = 0; panel < t.n_panels; ++panel) multiply_tile<S, S::kRowTile, 1>(t, row, panel);
  }
  if (row < t.n_rows) multiply_rest<S, S::kRowTile - 1>(t, row, t.n_rows - row);
}

template <typename S> static void softmax(const SoftmaxTask& t) {
  using F = typename S::F;
  bool all_visible = true;
  float limits[S::kLanes];
  for (int i = 0; i < S::kLanes; ++i) {
    limits[i] = static_cast<float>(t.visible[i]);
    all_visible = all_visible && t.visible[i] >= t.n_rows;
  }
  const F limit = S::load(limits);
  const auto score = [&](int64_t row) {
    const F x = S::load(t.scores + row * S::kLanes);
    return all_visible ? x : S::select_below(static_cast<float>(row), limit, x);
  };
  F largest = S::set(-__builtin_inff());
  for (int64_t row = 0; row < t.n_rows; ++row) largest = S::max(largest, score(row));
  S::store(t.max, largest);
  // Any finite number serves for a lane that sees nothing: all its scores are -infinity.
  const F base = S::max(largest, S::set(-1e30F));
  F sum = S::zero();
  for (int64_t row = 0; row < t.n_rows; row += S::kPack) {
    const F p0 = S::exp(S::sub(score(row), base));
    const F p1 = S::kPack == 2 && row + 1 < t.n_rows ? S::exp(S::sub(score(row + 1), base)) : S::zero();
    sum = S::round_pair(p0, p1, t.p + row / S::kPack * S::kLanes, sum);
  }
  S::store(t.sum, sum);
}

/// Columns col .. col + width; kFull: width is a whole vector, and needs no mask.
template <typename S, int kTile, bool kFull>
static inline void mix_tile(const MixTask& t, int64_t lane, int64_t col, int64_t width) {
  const auto mask = S::tail(kFull ? S::kLanes : width);
  typename S::F acc[kTile];
#pragma GCC unroll 16
  for (int m = 0; m < kTile; ++m) acc[m] = S::zero();
  const uint32_t* p = t.p + lane;
  // A line of a row ahead takes kPack vectors of columns, one of which fetches it: the odd one those of odd rows.
  const std::byte* ahead =
      lane == 0 && t.ahead != nullptr
          ? t.ahead + col / S::kLanes % S::kPack * t.ahead_stride_bytes + col * (4 / S::kPack) / 64 * 64
          : nullptr;
  for (int64_t row = 0; row < t.n_rows; row += S::kPack) {
    if (ahead != nullptr) __builtin_prefetch(ahead + row * t.ahead_stride_bytes, 0, 2);
    const typename S::W words = kFull ? S::load_rows(t.rows + row, col) : S::load_rows_tail(t.rows + row, col, mask);
#pragma GCC unroll 16
    for (int m = 0; m < kTile; ++m) acc[m] = S::dot(acc[m], words, reinterpret_cast<const std::byte*>(p + m));
    p += S::kLanes;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kTile; ++m) {
    if (lane + m >= t.n_lanes) break;
    float* out = t.out + (lane + m) * t.out_stride + col;
    kFull ? S::store(out, acc[m]) : S::store_tail(out, acc[m], mask);
  }
}

/// Two vectors of columns: a weight is read for two products.
template <typename S, int kTile> static inline void mix_wide_tile(const MixTask& t, int64_t lane, int64_t col) {
  typename S::F acc[kTile][2];
#pragma GCC unroll 16
  for (int m = 0; m < kTile; ++m) acc[m][0] = acc[m][1] = S::zero();
  const uint32_t* p = t.p + lane;
  // The columns are a line of kPack rows, or two lines of one.
  const std::byte* ahead = lane == 0 && t.ahead != nullptr ? t.ahead + col * (4 / S::kPack) : nullptr;
  const int64_t second = S::kPack == 2 ? t.ahead_stride_bytes : S::kLanes * 4;
  for (int64_t row = 0; row < t.n_rows; row += S::kPack) {
    if (ahead != nullptr) {
      __builtin_prefetch(ahead + row * t.ahead_stride_bytes, 0, 2);
      __builtin_prefetch(ahead + row * t.ahead_stride_bytes + second, 0, 2);
    }
    const typename S::W low = S::load_rows(t.rows + row, col), high = S::load_rows(t.rows + row, col + S::kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kTile; ++m) {
      acc[m][0] = S::dot(acc[m][0], low, reinterpret_cast<const std::byte*>(p + m));
      acc[m][1] = S::dot(acc[m][1], high, reinterpret_cast<const std::byte*>(p + m));
    }
    p += S::kLanes;
  }
#pragma GCC unroll 16
  for (int m = 0; m < kTile; ++m) {
    if (lane + m >= t.n_lanes) break;
    float* out = t.out + (lane + m) * t.out_stride + col;
    S::store(out, acc[m][0]), S::store(out + S::kLanes, acc[m][1]);
  }
}

template <typename S, int kTile> static inline void mix_wide(const MixTask& t) {
  for (int64_t lane = 0; lane < t.n_lanes; lane += kTile) {
    for (int64_t col = 0; col < t.n_cols; col += 2 * S::kLanes) mix_wide_tile<S, kTile>(t, lane, col);
  }
}

template <typename S, int kTile> static inline void mix_lanes(const MixTask& t) {
  for (int64_t lane = 0; lane < t.n_lanes; lane += kTile) {
    int64_t col = 0;
    for (; col + S::kLanes <= t.n_cols; col += S::kLanes) mix_tile<S, kTile, true>(t, lane, col, S::kLanes);
    if (col < t.n_cols) mix_tile<S, kTile, false>(t, lane, col, t.n_cols - col);
  }
}

template <typename S> static void mix(const MixTask& t) {
  if (t.n_lanes == 1) {
    mix_lanes<S, 1>(t);
  } else if (t.n_lanes <= 4) {
    mix_lanes<S, 4>(t);
  } else if (t.n_lanes <= 8) {
    mix_lanes<S, 8>(t);
  } else if (t.n_cols % (2 * S::kLanes) == 0) {
    mix_wide<S, S::kMixTile / 2>(t);
  } else {
    mix_lanes<S, S::kMixTile>(t);
  }
}

template <typename S> static void weigh_heads(const WeighHeadsTask& t) {
  const float* products = t.products;
  for (int64_t row = 0; row < t.n_rows; ++row) {
    typename S::F sum = S::zero();
    for (int64_t panel = 0; panel < t.n_panels; ++panel, products += S::kLanes)
      sum = S::fma(S::load(t.weights + panel * S::kLanes), S::max(S::load(products), S::zero()), sum);
    t.scores[row] = S::total(sum);
  }
}

template <typename S> static void fold(const FoldTask& t) {
  using F = typename S::F;
  float before[S::kLanes] = {}, part[S::kLanes] = {}, total[S::kLanes];
  const F part_max = S::load(t.part_max), part_sum = S::load(t.part_sum);
  F sum = part_sum;
  if (t.first) {
    S::store(t.max, part_max);
  } else {
    const F largest = S::max(S::load(t.max), part_max);
    const F scale_before = S::exp(S::sub(S::load(t.max), largest)), scale_part = S::exp(S::sub(part_max, largest));
    S::store(before, scale_before);
    S::store(part, scale_part);
    S::store(t.max, largest);
    sum = S::fma(part_sum, scale_part, S::mul(S::load(t.sum), scale_before));
  }
  S::store(t.sum, sum);
  S::store(total, sum);
  for (int64_t lane = 0; lane < t.n_lanes; ++lane) {
    float* out = t.out + lane * t.out_stride;
    const float* in = t.part + lane * t.part_stride;
    const F a = S::set(before[lane]), b = S::set(part[lane]), scale = S::set(t.last ? 1.0F / total[lane] : 1.0F);
    const auto folded = [&](F x, F running) { return S::mul(t.first ? x : S::fma(x, b, S::mul(running, a)), scale); };
    int64_t i = 0;
    for (; i + S::kLanes <= t.n_cols; i += S::kLanes) S::store(out + i, folded(S::load(in + i), S::load(out + i)));
    if (i < t.n_cols) {
      const auto mask = S::tail(t.n_cols - i);
      S::store_tail(out + i, folded(S::load_tail(in + i, mask), S::load_tail(out + i, mask)), mask);
    }
  }
}

/// exp(x) for x <= 0, to about 1e-7: 2^n with n = round(x / ln 2) times a polynomial of the rest (Taylor to the sixth
/// power, whose error on [-ln 2 / 2, ln 2 / 2] is 1.2e-7). 0 below -87, where 2^n would leave the normal numbers.
template <typename S> static inline typename S::F exp_of(typename S::F x) {
  using F = typename S::F;
  const F clamped = S::max(x, S::set(-87.0F));
  const F n = S::round(S::mul(clamped, S::set(1.44269504F)));
  const F r = S::fma(n, S::set(2.12194440e-4F), S::fma(n, S::set(-0.693359375F), clamped));
  F y = S::fma(r, S::set(1.0F / 720), S::set(1.0F / 120));
  y = S::fma(y, r, S::set(1.0F / 24));
  y = S::fma(y, r, S::set(1.0F / 6));
  y = S::fma(y, r, S::set(0.5F));
  y = S::fma(y, r, S::set(1.0F));
  y = S::fma(y, r, S::set(1.0F));
  return S::zero_below(x, -87.0F, S::scale_by_power(y, n));
}

}  // namespace fathom::cpu
