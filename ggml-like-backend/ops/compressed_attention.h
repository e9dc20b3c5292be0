#pragma once
#include "graph/graph.h"

namespace fathom {

/// How rows that stand for several tokens are made; all f32 but the matrices, which may be of any type.
struct CompressorWeights {
  Tensor kv_proj, gate_proj;  ///< [S * N, D]; S = 2 where windows overlap, else 1
  Tensor positional;          ///< [ratio, S * N]
  Tensor norm;                ///< [N]
  template <typename F> void each(F&& f) { f(kv_proj), f(gate_proj), f(positional), f(norm); }
};

/// What a compressor keeps: of every token what it adds to rows that are not made yet, and the rows.
struct CompressorCache {
  Tensor pending;  ///< [pages, page_tokens, 2 * S * N] f32
  Tensor rows;     ///< [pages, max(1, page_tokens / ratio), N] cache type
};

/// What tokens give to the rows of a compressor.
struct CompressorProducts {
  Tensor kv, gate;  ///< [T, S * N] f32
};
CompressorProducts compressor_products(Graph& g, const Tensor& x, const CompressorWeights& w);

/// Row w of a sequence stands for its tokens ratio * w .. ratio * w + ratio - 1 and is made in the step that brings the
/// last of them; it lies in that token's page. Per channel j < N the softmax of the tokens' (gate + positional) weighs
/// their kv; where windows overlap, the ratio tokens before are weighed with them, they by channel j and the row's own
/// by channel N + j. Then RMS norm, and rotation of the last R as at the row's first token. Source: the V4
/// checkpoints' inference code.
void compress_rows(Graph& g, const CompressorProducts& products, const CompressorWeights& w, const Tensor& frequencies,
                   const StepTensors& step, const CompressorCache& cache, int64_t ratio, float eps);

struct CompressedAttentionParams {
  float scale = 1;
  int64_t window_tokens = 0;  ///< rows of the last so many tokens are seen, the token's own included
  int64_t ratio = 0;          ///< tokens of a compressed row
};

/// Attention of q [T, H, N] f32 over rows that are key and value of all heads: those of the window and those compressed
/// rows w < floor((position + 1) / ratio) that `chosen` [T, top_k] names (-1: none), or all of them. sinks [H] join the
/// softmax without a value. -> [T, H * N] f32. window [pages, page_tokens, N]; compressed as CompressorCache::rows or
/// empty. A token that sees no more than top_k compressed rows gets the same bits with and without `chosen`.
Tensor compressed_attention(Graph& g, const Tensor& q, const Tensor& window, const Tensor& compressed,
                            const Tensor& chosen, const Tensor& sinks, const StepTensors& step,
                            const CompressedAttentionParams& params);

}  // namespace fathom
