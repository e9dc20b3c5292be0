// Vectors of 8 floats for attention_tiles.h.
#pragma once

#include <immintrin.h>

#include "cpu/attention_tiles.h"

namespace fathom::cpu::avx2 {

/// Operands are floats. Of 16 registers a tile's sums take 8 to 12.
struct Floats8 {
  static constexpr int kLanes = 8, kPack = 1, kRowTile = 12, kMixTile = 8;
  using F = __m256;
  using W = __m256;
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float total(F x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power(F y, F n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent));
  }
  static F zero_below(F x, float limit, F y) {
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_GE_OQ), y);
  }
  static F exp(F x) { return exp_of<Floats8>(x); }
  static F select_below(float i, F limit, F x) {
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), x, _mm256_cmp_ps(_mm256_set1_ps(i), limit, _CMP_LT_OQ));
  }
  static __m256i tail(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F load_tail(const float* p, __m256i mask) { return _mm256_maskload_ps(p, mask); }
  static void store_tail(float* p, F x, __m256i mask) { _mm256_maskstore_ps(p, mask, x); }

  static W load_words(const uint32_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static F dot(F acc, W words, const std::byte* a) {
    float word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm256_fmadd_ps(words, _mm256_set1_ps(word), acc);
  }
  static W load_rows(const std::byte* const* rows, int64_t i) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(rows[0]) + i);
  }
  static W load_rows_tail(const std::byte* const* rows, int64_t i, __m256i mask) {
    return _mm256_maskload_ps(reinterpret_cast<const float*>(rows[0]) + i, mask);
  }
  static F round_pair(F p0, F, uint32_t* words, F sum) {
    _mm256_storeu_ps(reinterpret_cast<float*>(words), p0);
    return _mm256_add_ps(sum, p0);
  }
};

}  // namespace fathom::cpu::avx2
