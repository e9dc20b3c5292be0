#include "cpu/machine_loops.h"

#include <immintrin.h>

namespace fathom::cpu::avx2 {
namespace {

constexpr int kChains = 12;  // of 16 registers

uint64_t read(const std::byte* p, size_t n) {
  __m256i sum[4] = {};
  for (size_t i = 0; i < n; i += 512) {
    for (int j = 0; j < 16; ++j)
      sum[j % 4] = _mm256_xor_si256(sum[j % 4], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i) + j));
  }
  sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0) ^ _mm256_extract_epi64(sum[0], 3));
}

double int8(int64_t n) {
  __m256i acc[kChains];
#pragma GCC unroll 32
  for (int j = 0; j < kChains; ++j) acc[j] = _mm256_setzero_si256();
  const __m256i x = _mm256_set1_epi32(static_cast<int>(n)), y = _mm256_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) {
      acc[j] =
          _mm256_add_epi16(acc[j], _mm256_maddubs_epi16(x, y));  // the least that AVX2 can do for a product and its sum
      asm volatile("" : "+v"(acc[j]));
    }
  }
  return static_cast<double>(n) * kChains * 32 * 2;
}

double f32(int64_t n) {
  __m256 acc[kChains];
#pragma GCC unroll 32
  for (int j = 0; j < kChains; ++j) acc[j] = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(static_cast<float>(n)), y = _mm256_set1_ps(1e-30F);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) {
      acc[j] = _mm256_fmadd_ps(x, y, acc[j]);
      asm volatile("" : "+v"(acc[j]));
    }
  }
  return static_cast<double>(n) * kChains * 8 * 2;
}

}  // namespace

const MachineLoops machine_loops = {"avx2", read, int8, f32};

}  // namespace fathom::cpu::avx2
