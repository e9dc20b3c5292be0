#pragma once
#include "graph/graph.h"

namespace fathom {

/// Puts rows as they are into the cache: x [T, N] f32, slots [T] I32, cache [pages, rows of a page, N].
void store_rows(Graph& g, const Tensor& x, const Tensor& slots, const Tensor& cache);

/// The lightning indexer's choice of the cached rows that attention may see.
/// Row w of a sequence stands for tokens_per_row neighbouring tokens (1: V3.2, 4: V4), and lies at row w % n of page
/// w / n, n = cache.dim(1). A token at position p sees rows w < floor((p + 1) / tokens_per_row), all of them stored
/// before; of these it chooses the top_k with the highest sum_h head_weights[h] * relu(q[h] . row_w), all where there
/// are no more; of equal scores the lower row. A positive factor on a token's head weights changes nothing. Sums in
/// f32. q [T, HI, DI] f32, head_weights [T, HI] f32, cache [pages, n, DI] -> [T, top_k] I32, row numbers in the
/// sequence, rising, -1 behind the last. Source: DeepSeek-V3.2 technical report (arXiv:2512.02556), section 2.1.
Tensor index_rows(Graph& g, const Tensor& q, const Tensor& head_weights, const Tensor& cache, const StepTensors& step,
                  int tokens_per_row, int64_t top_k);

}  // namespace fathom
