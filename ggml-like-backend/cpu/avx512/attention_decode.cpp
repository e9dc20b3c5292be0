// Decoding of rows, AVX-512.
#include "cpu/attention_decode.h"

namespace fathom::cpu::avx512 {
namespace {

struct Decoded16 {
  static constexpr int kLanes = 16;
  using F = __m512;
  static F set(float x) { return _mm512_set1_ps(x); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F from_bytes(const uint8_t* u, int offset) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(load16(u)), _mm512_set1_epi32(offset)));
  }
  static F from_f16(const uint16_t* p) { return _mm512_cvtph_ps(load32(p)); }
  static F from_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16));
  }
  static F from_f8(const uint8_t* p) {
    const __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(halves_of_f8(p)), halves_of_f8(p + 8), 1);
    return mul(_mm512_cvtph_ps(halves), set(256.0F));
  }
};

}  // namespace

DecodeRow row_decoder(uint32_t dtype) { return row_decoder_of<Decoded16>(dtype); }

}  // namespace fathom::cpu::avx512
