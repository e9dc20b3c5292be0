#include "cpu/machine_loops.h"

#include <immintrin.h>

namespace fathom::cpu::avx512 {
namespace {

constexpr int kChains = 24;  // enough independent accumulators to hide 4 cycles of latency on two ports

uint64_t read(const std::byte* p, size_t n) {
  __m512i sum[4] = {};
  for (size_t i = 0; i < n; i += 512) {
    for (int j = 0; j < 8; ++j)
      sum[j % 4] = _mm512_xor_si512(sum[j % 4], _mm512_load_si512(p + i + 64 * static_cast<size_t>(j)));
  }
  sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum[0]));
}

double int8(int64_t n) {
  __m512i acc[kChains];
#pragma GCC unroll 32
  for (int j = 0; j < kChains; ++j) acc[j] = _mm512_setzero_si512();
  const __m512i x = _mm512_set1_epi32(static_cast<int>(n)), y = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) {
      acc[j] = _mm512_dpbusd_epi32(acc[j], x, y);
      asm volatile("" : "+v"(acc[j]));
    }
  }
  return static_cast<double>(n) * kChains * 64 * 2;
}

double f32(int64_t n) {
  __m512 acc[kChains];
#pragma GCC unroll 32
  for (int j = 0; j < kChains; ++j) acc[j] = _mm512_setzero_ps();
  const __m512 x = _mm512_set1_ps(static_cast<float>(n)), y = _mm512_set1_ps(1e-30F);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) {
      acc[j] = _mm512_fmadd_ps(x, y, acc[j]);
      asm volatile("" : "+v"(acc[j]));
    }
  }
  return static_cast<double>(n) * kChains * 16 * 2;
}

}  // namespace

const MachineLoops machine_loops = {"avx512", read, int8, f32};

}  // namespace fathom::cpu::avx512
