// Plain multi-head attention: a block of query rows is up to `lanes` tokens of one sequence at one head.
#include "cpu/attention.h"
#include "cpu/fast/paged_attention.h"

namespace fathom::cpu::fast {
namespace {

struct Layout {
  const AttentionKernels& kernels;
  Carver shared, own;
  PagedAttention attention;
  uint32_t* words;  ///< one query

  Layout(const MultiHeadAttentionArgs& a, const MatmulKernels& matmul, int n_threads, std::byte* shared_base,
         std::byte* own_base)
      : kernels(attention_kernels(matmul.isa, a.cache.dtype)),
        shared(shared_base),
        own(own_base),
        attention(kernels, a.cache, a.step, {}, a.q.dim(2), a.q.dim(2), count_blocks(a, kernels.lanes), n_threads,
                  shared, own),
        words(own.take<uint32_t>(a.q.dim(2))) {}

  static int64_t count_blocks(const MultiHeadAttentionArgs& a, int64_t lanes) {
    int64_t n = 0;
    for_each_run(a.step, [&](const SequenceRun& run) { n += (run.n_tokens + lanes - 1) / lanes * a.q.dim(1); });
    return n;
  }
};

}  // namespace

Workspace multi_head_attention_workspace(const MultiHeadAttentionArgs& a, const MatmulKernels& kernels, int n_threads) {
  const Layout l(a, kernels, n_threads, nullptr, nullptr);
  return {l.shared.used(), l.own.used()};
}

void multi_head_attention(const MultiHeadAttentionArgs& a, OpContext& c) {
  Layout l(a, *c.matmul, c.worker.count(), c.shared, c.own);
  const int64_t n_heads = a.q.dim(1), n = a.q.dim(2), lanes = l.kernels.lanes;
  int64_t index = 0;
  for_each_run(a.step, [&](const SequenceRun& run) {
    for (int64_t h = 0; h < n_heads; ++h) {
      for (int64_t done = 0; done < run.n_tokens; done += lanes, ++index) {
        if (index % c.worker.count() != c.worker.index()) continue;
        const int64_t first = run.first_token + done, n_lanes = std::min(lanes, run.n_tokens - done);
        const int32_t* positions = a.step.positions.as<int32_t>() + first;
        for (int64_t i = 0; i < lanes; ++i) l.attention.visible(index)[i] = positions[std::min(i, n_lanes - 1)] + 1;
        for (int64_t i = 0; i < n_lanes; ++i) {
          l.kernels.pack_words(a.q.row_as<float>(first + i) + h * n, a.scale, l.words, n);
          spread_words(l.words, word_count(l.kernels, n), i, lanes, l.attention.queries(index));
        }
        l.attention.blocks()[index] = {l.attention.queries(index),
                                       l.attention.visible(index),
                                       a.out.row_as<float>(first) + h * n,
                                       a.out.dim(1),
                                       run.sequence,
                                       positions[n_lanes - 1] + 1,
                                       n_lanes,
                                       h * n,
                                       (n_heads + h) * n};
      }
    }
  });
  c.worker.barrier();
  l.attention.run(c.worker);
}

}  // namespace fathom::cpu::fast
