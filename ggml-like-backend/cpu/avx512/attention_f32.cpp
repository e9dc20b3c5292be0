// Attention on float operands, AVX-512.
#include "cpu/avx512/attention_vectors.h"

namespace fathom::cpu::avx512 {
namespace {

void pack_words(const float* x, float factor, uint32_t* words, int64_t n) {
  const __m512 scale = _mm512_set1_ps(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(words + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), scale));
  const __mmask16 mask = Floats16::tail(n - i);
  if (i < n) _mm512_mask_storeu_ps(words + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale));
}

/// Decoded rows are words.
PackRow no_row_packer(uint32_t) { return nullptr; }

}  // namespace

const AttentionKernels attention_f32 = {
    Floats16::kLanes,      Floats16::kPack, multiply<Floats16>, softmax<Floats16>, mix<Floats16>, fold<Floats16>,
    weigh_heads<Floats16>, pack_words,      row_decoder,        no_row_packer,     nullptr};

}  // namespace fathom::cpu::avx512
