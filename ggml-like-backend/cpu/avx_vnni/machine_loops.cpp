#include "cpu/machine_loops.h"

#include <immintrin.h>

namespace fathom::cpu::avx_vnni {

double int8_loop(int64_t n) {
  constexpr int kChains = 12;  // of 16 registers
  __m256i acc[kChains];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  const __m256i x = _mm256_set1_epi32(static_cast<int>(n)), y = _mm256_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i) {
    for (__m256i& a : acc) {
      a = _mm256_dpbusd_avx_epi32(a, x, y);
      asm volatile("" : "+x"(a));
    }
  }
  return static_cast<double>(n) * kChains * 32 * 2;
}

}  // namespace fathom::cpu::avx_vnni
