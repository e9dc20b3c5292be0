// Attention on float operands, AVX2.
#include "cpu/avx2/attention_vectors.h"

namespace fathom::cpu::avx2 {
namespace {

void pack_words(const float* x, float factor, uint32_t* words, int64_t n) {
  auto* out = reinterpret_cast<float*>(words);
  const __m256 scale = _mm256_set1_ps(factor);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
  const __m256i mask = Floats8::tail(n - i);
  if (i < n) _mm256_maskstore_ps(out + i, mask, _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale));
}

/// Decoded rows are words.
PackRow no_row_packer(uint32_t) { return nullptr; }

}  // namespace

const AttentionKernels attention_f32 = {
    Floats8::kLanes,      Floats8::kPack, multiply<Floats8>, softmax<Floats8>, mix<Floats8>, fold<Floats8>,
    weigh_heads<Floats8>, pack_words,     row_decoder,       no_row_packer,    nullptr};

}  // namespace fathom::cpu::avx2
