// Attention over q8_0 pages on int8 operands, AVX-VNNI.
#include "cpu/attention_integer.h"
#include "cpu/avx2/attention_vectors.h"

namespace fathom::cpu::avx_vnni {
namespace {

struct Bytes8 : avx2::Floats8 {
  static constexpr int kColumns = 32, kScoreRows = 4, kMixLanes = 4;
  using I = __m256i;
  static I int_zero() { return _mm256_setzero_si256(); }
  static I load_int(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_int(uint32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static F to_floats(I x) { return _mm256_cvtepi32_ps(x); }
  static I dot_bytes(I acc, I u, I s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
  static I word_at(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
  }
  static float from_half(uint16_t bits) { return _cvtsh_ss(bits); }
  static I load_codes(const BlockQ8_0* block) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block->qs));
  }
  static I flip(I codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8(-128)); }
  /// Columns 4l .. 4l + 3 of each quarter go to lane l, so that interleaving inside lanes leaves columns in order.
  static void transpose(const I* rows, uint32_t* words) {
    const I order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const I a = _mm256_permutevar8x32_epi32(rows[0], order), b = _mm256_permutevar8x32_epi32(rows[1], order);
    const I c = _mm256_permutevar8x32_epi32(rows[2], order), d = _mm256_permutevar8x32_epi32(rows[3], order);
    const I ab_low = _mm256_unpacklo_epi8(a, b), ab_high = _mm256_unpackhi_epi8(a, b);
    const I cd_low = _mm256_unpacklo_epi8(c, d), cd_high = _mm256_unpackhi_epi8(c, d);
    store_int(words, _mm256_unpacklo_epi16(ab_low, cd_low));
    store_int(words + 8, _mm256_unpackhi_epi16(ab_low, cd_low));
    store_int(words + 16, _mm256_unpacklo_epi16(ab_high, cd_high));
    store_int(words + 24, _mm256_unpackhi_epi16(ab_high, cd_high));
  }
  static I second_bytes(F a, F b, F c, F d) {
    const I odd = _mm256_set1_epi16(-256);
    const auto pair = [&](F x, F y) {
      return _mm256_or_si256(_mm256_srli_epi16(_mm256_castps_si256(x), 8),
                             _mm256_and_si256(_mm256_castps_si256(y), odd));
    };
    return _mm256_blend_epi16(pair(a, b), _mm256_slli_epi32(pair(c, d), 16), 0xaa);
  }
};

constexpr IntegerAttention kIntegers = {pack_slice<Bytes8>, integer_scores<Bytes8>, integer_mix<Bytes8>};

PackRow no_row_packer(uint32_t) { return nullptr; }

}  // namespace

const AttentionKernels attention_int8 = {Bytes8::kLanes,    4,
                                         nullptr,           softmax<Bytes8>,
                                         nullptr,           fold<Bytes8>,
                                         nullptr,           pack_integer_query<Bytes8>,
                                         avx2::row_decoder, no_row_packer,
                                         &kIntegers};

}  // namespace fathom::cpu::avx_vnni
