// What this machine can do at best, measured beside the kernels: memory reads and integer multiply-adds.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fathom::bench {

/// Reads n bytes (a multiple of 256) as fast as one thread can.
__attribute__((target("avx2"))) inline uint64_t read_all(const std::byte* p, size_t n) {
  __m256i sum[4] = {};
  for (size_t i = 0; i < n; i += 256) {
    for (int j = 0; j < 8; ++j) {
      sum[j % 4] = _mm256_xor_si256(sum[j % 4], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0) ^ _mm256_extract_epi64(sum[0], 3));
}

constexpr int kPeakUnroll = 24;

/// n x kPeakUnroll vpdpbusd of 512 bits; returns the multiply-adds done.
__attribute__((target("avx512f,avx512vnni"))) inline double run_dpbusd(int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
#define D(r) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #r "\n"
    asm volatile(D(0) D(1) D(2) D(3) D(4) D(5) D(6) D(7) D(8) D(9) D(10) D(11) D(12) D(13) D(14) D(15) D(16) D(17) D(18)
                     D(19) D(20) D(21) D(22) D(23)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",
                           "xmm21", "xmm22", "xmm23");
#undef D
  }
  return static_cast<double>(n) * kPeakUnroll * 64;
}

/// n x kPeakUnroll vpmaddubsw of 256 bits, each with a 16-bit addition: the least AVX2 can do per product.
__attribute__((target("avx2"))) inline double run_maddubs(int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
#define D(a, b) "vpmaddubsw %%ymm14, %%ymm15, %%ymm" #a "\nvpaddw %%ymm" #a ", %%ymm" #b ", %%ymm" #b "\n"
    asm volatile(
        D(0, 6) D(1, 7) D(2, 8) D(3, 9) D(4, 10) D(5, 11) D(0, 6) D(1, 7) D(2, 8) D(3, 9) D(4, 10) D(5, 11) D(0, 6)
            D(1, 7) D(2, 8) D(3, 9) D(4, 10) D(5, 11) D(0, 6) D(1, 7) D(2, 8) D(3, 9) D(4, 10) D(5, 11)::
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
#undef D
  }
  return static_cast<double>(n) * kPeakUnroll * 32;
}

}  // namespace fathom::bench
