// Attention on bf16 operands with f32 sums, AVX-512 with BF16: twice the multiplications of floats in an instruction,
// and bf16 cache rows are operands as they are.
#include "core/quant/blocks.h"
#include "cpu/avx512/attention_vectors.h"

namespace fathom::cpu::avx512 {
namespace {

__m512i rounded(__m512 x) { return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x))); }

/// Floats in between; operands are pairs of bf16, the lower half first.
struct Pairs16 : Floats16 {
  static constexpr int kPack = 2;
  using W = __m512i;
  static W load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static F dot(F acc, W words, const std::byte* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(words),
                            reinterpret_cast<__m512bh>(_mm512_set1_epi32(word)));
  }
  static W interleaved(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
  static W load_rows(const std::byte* const* rows, int64_t i) {
    return interleaved(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[0] + 2 * i)),
                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[1] + 2 * i)));
  }
  static W load_rows_tail(const std::byte* const* rows, int64_t i, __mmask16 mask) {
    return interleaved(_mm256_maskz_loadu_epi16(mask, rows[0] + 2 * i),
                       _mm256_maskz_loadu_epi16(mask, rows[1] + 2 * i));
  }
  static F round_pair(F p0, F p1, uint32_t* words, F sum) {
    const __m512i low = rounded(p0), high = _mm512_slli_epi32(rounded(p1), 16);
    _mm512_storeu_si512(words, _mm512_or_si512(low, high));
    const F first = _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
    return _mm512_add_ps(_mm512_add_ps(sum, first), _mm512_castsi512_ps(high));
  }
};

void pack_words(const float* x, float factor, uint32_t* words, int64_t n) {
  auto* out = reinterpret_cast<uint16_t*>(words);
  const __m512 scale = _mm512_set1_ps(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale))));
  }
  if (i < n) {
    const __m512 rest = _mm512_mul_ps(_mm512_maskz_loadu_ps(Pairs16::tail(n - i), x + i), scale);
    _mm256_mask_storeu_epi16(out + i, Pairs16::tail((n - i + 1) / 2 * 2),
                             reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
  }
}

/// Through floats in memory it takes two and a half times as long.
void pack_q8_0(const void* src, uint32_t* words, int64_t n) {
  const auto* block = static_cast<const BlockQ8_0*>(src);
  for (int64_t i = 0; i < n; i += kSmallBlock, ++block) {
    const __m512 d = _mm512_set1_ps(_cvtsh_ss(block->d));
    const auto* q = reinterpret_cast<const __m128i*>(block->qs);
    const __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q))), d);
    const __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1))), d);
    _mm512_storeu_si512(words + i / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
}

PackRow row_packer(uint32_t dtype) {
  constexpr uint32_t kQ8_0 = 8;
  return dtype == kQ8_0 ? pack_q8_0 : nullptr;
}

}  // namespace

const AttentionKernels attention_bf16 = {
    Pairs16::kLanes,      Pairs16::kPack, multiply<Pairs16>, softmax<Pairs16>, mix<Pairs16>, fold<Pairs16>,
    weigh_heads<Pairs16>, pack_words,     row_decoder,       row_packer,       nullptr};

}  // namespace fathom::cpu::avx512
