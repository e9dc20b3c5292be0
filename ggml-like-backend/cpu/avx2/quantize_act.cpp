// Activations to ActBlocks. Serves the AVX-512 kernels as well.
#include "cpu/avx2/quantize_act.h"

#include <immintrin.h>

namespace fathom::cpu {
namespace {

float largest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/// Sum of 16 signed bytes.
int32_t sum16(__m128i q) {
  const __m128i sums = _mm_sad_epu8(_mm_xor_si128(q, _mm_set1_epi8(static_cast<char>(0x80))), _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2) - 16 * 128;
}

uint32_t float_bits(float f) { return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(f)))); }

}  // namespace

void quantize_act_avx2(ActFormat format, const float* x, void* act, int64_t k) {
  auto* block = static_cast<ActBlock*>(act);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int64_t i = 0; i < k; i += 32, ++block) {
    const __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
    const __m256 x2 = _mm256_loadu_ps(x + i + 16), x3 = _mm256_loadu_ps(x + i + 24);
    const float top = largest(_mm256_max_ps(_mm256_max_ps(_mm256_andnot_ps(sign, x0), _mm256_andnot_ps(sign, x1)),
                                            _mm256_max_ps(_mm256_andnot_ps(sign, x2), _mm256_andnot_ps(sign, x3))));
    // Below 2^-120 the inverse would overflow: such a block is zero beside anything it could be added to.
    const __m256 inverse = _mm256_set1_ps(top > 0x1p-120f ? 127.0f / top : 0.0f);
    const auto rounded = [&](__m256 v) { return _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)); };
    // The packs interleave 128-bit halves; one permutation of 32-bit groups puts the bytes in order.
    const __m256i words =
        _mm256_packs_epi16(_mm256_packs_epi32(rounded(x0), rounded(x1)), _mm256_packs_epi32(rounded(x2), rounded(x3)));
    const __m256i q = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block->q), q);
    block->d = top > 0x1p-120f ? top / 127.0f : 0.0f;

    const int32_t low = sum16(_mm256_castsi256_si128(q)), high = sum16(_mm256_extracti128_si256(q, 1));
    switch (format.kind) {
      case ActKind::kSum32: block->s[0] = float_bits(static_cast<float>(low + high)), block->s[1] = 0; break;
      case ActKind::kSum16:
        block->s[0] = float_bits(static_cast<float>(low));
        block->s[1] = float_bits(static_cast<float>(high));
        break;
      case ActKind::kOffset32:
        block->s[0] = static_cast<uint32_t>(-format.offset * (low + high)), block->s[1] = 0;
        break;
      case ActKind::kOffset16:
        block->s[0] = static_cast<uint32_t>(-format.offset * low);
        block->s[1] = static_cast<uint32_t>(-format.offset * high);
        break;
      case ActKind::kF32: break;
    }
  }
}

}  // namespace fathom::cpu
