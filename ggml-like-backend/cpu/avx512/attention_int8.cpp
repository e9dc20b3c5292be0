// Attention over q8_0 pages on int8 operands, AVX-512 with VNNI.
#include "cpu/attention_integer.h"
#include "cpu/avx512/attention_vectors.h"

namespace fathom::cpu::avx512 {
namespace {

struct Bytes16 : Floats16 {
  static constexpr int kColumns = 64, kScoreRows = 8, kMixLanes = 8;
  using I = __m512i;
  static I int_zero() { return _mm512_setzero_si512(); }
  static I load_int(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store_int(uint32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static F to_floats(I x) { return _mm512_cvtepi32_ps(x); }
  static I dot_bytes(I acc, I u, I s) { return _mm512_dpbusd_epi32(acc, u, s); }
  static I word_at(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
  }
  static float from_half(uint16_t bits) { return _cvtsh_ss(bits); }
  static I load_codes(const BlockQ8_0* block) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block[0].qs))),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block[1].qs)), 1);
  }
  static I flip(I codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
  /// Columns 4l .. 4l + 3 of each quarter go to lane l, so that interleaving inside lanes leaves columns in order.
  static void transpose(const I* rows, uint32_t* words) {
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const I a = _mm512_permutexvar_epi32(order, rows[0]), b = _mm512_permutexvar_epi32(order, rows[1]);
    const I c = _mm512_permutexvar_epi32(order, rows[2]), d = _mm512_permutexvar_epi32(order, rows[3]);
    const I ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    const I cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
    store_int(words, _mm512_unpacklo_epi16(ab_low, cd_low));
    store_int(words + 16, _mm512_unpackhi_epi16(ab_low, cd_low));
    store_int(words + 32, _mm512_unpacklo_epi16(ab_high, cd_high));
    store_int(words + 48, _mm512_unpackhi_epi16(ab_high, cd_high));
  }
  static I second_bytes(F a, F b, F c, F d) {
    const I low = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(a), 8),
                                         _mm512_castps_si512(b));
    const I high = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(c), 8),
                                          _mm512_castps_si512(d));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
  }
};

constexpr IntegerAttention kIntegers = {pack_slice<Bytes16>, integer_scores<Bytes16>, integer_mix<Bytes16>};

PackRow no_row_packer(uint32_t) { return nullptr; }

}  // namespace

const AttentionKernels attention_int8 = {Bytes16::kLanes, 4,
                                         nullptr,         softmax<Floats16>,
                                         nullptr,         fold<Floats16>,
                                         nullptr,         pack_integer_query<Bytes16>,
                                         row_decoder,     no_row_packer,
                                         &kIntegers};

}  // namespace fathom::cpu::avx512
