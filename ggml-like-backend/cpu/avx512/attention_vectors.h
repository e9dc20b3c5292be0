// Vectors of 16 floats for attention_tiles.h.
#pragma once

#include <immintrin.h>

#include "cpu/attention_tiles.h"

namespace fathom::cpu::avx512 {

/// Operands are floats.
struct Floats16 {
  static constexpr int kLanes = 16, kPack = 1, kRowTile = 16, kMixTile = 16;
  using F = __m512;
  using W = __m512;
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float total(F x) { return _mm512_reduce_add_ps(x); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power(F y, F n) { return _mm512_scalef_ps(y, n); }
  static F zero_below(F x, float limit, F y) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), y);
  }
  static F exp(F x) { return exp_of<Floats16>(x); }
  static F select_below(float i, F limit, F x) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()),
                              _mm512_cmp_ps_mask(_mm512_set1_ps(i), limit, _CMP_LT_OQ), x);
  }
  static __mmask16 tail(int64_t n) { return static_cast<__mmask16>((1U << n) - 1); }
  static F load_tail(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
  static void store_tail(float* p, F x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }

  static W load_words(const uint32_t* p) { return _mm512_loadu_ps(p); }
  static F dot(F acc, W words, const std::byte* a) {
    float word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm512_fmadd_ps(words, _mm512_set1_ps(word), acc);
  }
  static W load_rows(const std::byte* const* rows, int64_t i) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(rows[0]) + i);
  }
  static W load_rows_tail(const std::byte* const* rows, int64_t i, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, reinterpret_cast<const float*>(rows[0]) + i);
  }
  static F round_pair(F p0, F, uint32_t* words, F sum) {
    _mm512_storeu_ps(words, p0);
    return _mm512_add_ps(sum, p0);
  }
};

}  // namespace fathom::cpu::avx512
