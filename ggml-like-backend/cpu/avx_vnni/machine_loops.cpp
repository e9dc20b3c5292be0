#include "cpu/machine_loops.h"

#include <immintrin.h>

namespace fathom::cpu::avx_vnni {

double int8_loop(int64_t n) {
  constexpr int kChains = 12;  // of 16 registers
  __m256i acc[kChains];
#pragma GCC unroll 32
  for (int j = 0; j < kChains; ++j) acc[j] = _mm256_setzero_si256();
  const __m256i x = _mm256_set1_epi32(static_cast<int>(n)), y = _mm256_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) {
      acc[j] = _mm256_dpbusd_avx_epi32(acc[j], x, y);
      asm volatile("" : "+x"(acc[j]));
    }
  }
  return static_cast<double>(n) * kChains * 32 * 2;
}

}  // namespace fathom::cpu::avx_vnni
