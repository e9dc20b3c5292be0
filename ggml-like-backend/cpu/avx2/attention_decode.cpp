// Decoding of rows, AVX2.
#include "cpu/attention_decode.h"

namespace fathom::cpu::avx2 {
namespace {

struct Decoded8 {
  static constexpr int kLanes = 8;
  using F = __m256;
  static F set(float x) { return _mm256_set1_ps(x); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F from_bytes(const uint8_t* u, int offset) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(u)));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, _mm256_set1_epi32(offset)));
  }
  static F from_f16(const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); }
  static F from_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
  static F from_f8(const uint8_t* p) { return mul(_mm256_cvtph_ps(halves_of_f8(p)), set(256.0F)); }
};

}  // namespace

DecodeRow row_decoder(uint32_t dtype) { return row_decoder_of<Decoded8>(dtype); }

}  // namespace fathom::cpu::avx2
