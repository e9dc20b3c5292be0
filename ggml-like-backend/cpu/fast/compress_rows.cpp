// Rows of several tokens over the element kernels.
#include "cpu/compressed_rows.h"
#include "cpu/fast/fast.h"
#include "cpu/fast/matmul_tasks.h"

namespace fathom::cpu::fast {
namespace {

struct Scratch {
  Carver carver;
  const float** values;  ///< [S * ratio] tokens of a row
  const float** gates;
  float* pooled;  ///< [N]
  float* row;     ///< [N]

  Scratch(const CompressRowsArgs& a, std::byte* base) : carver(base) {
    const int64_t n_tokens = a.overlaps() ? 2 * a.ratio : a.ratio;
    values = carver.take<const float*>(n_tokens);
    gates = carver.take<const float*>(n_tokens);
    pooled = carver.take<float>(a.row_dim());
    row = carver.take<float>(a.row_dim());
  }
};

}  // namespace

Workspace compress_rows_workspace(const CompressRowsArgs& a) { return {0, Scratch(a, nullptr).carver.used()}; }

void compress_rows(const CompressRowsArgs& a, OpContext& c) {
  const int64_t n = a.row_dim(), channels = a.kv.dim(1);
  const Scratch scratch(a, c.own);
  c.worker.share(a.kv.dim(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) store_pending(a, t);
  });
  c.worker.barrier();
  c.worker.share(a.kv.dim(0), 1, [&](int64_t t, int64_t) {
    const int64_t last = a.step.positions.as<int32_t>()[t], sequence = a.step.sequence_of.as<int32_t>()[t];
    if ((last + 1) % a.ratio != 0) return;
    const int64_t first = last + 1 - a.ratio;
    int n_tokens = 0;
    for (int64_t p = a.overlaps() ? std::max<int64_t>(0, first - a.ratio) : first; p <= last; ++p, ++n_tokens) {
      const auto* pending = reinterpret_cast<const float*>(cached_row(a.pending, a.step, sequence, p));
      const int64_t own = a.overlaps() && p >= first ? n : 0;
      scratch.values[n_tokens] = pending + own;
      scratch.gates[n_tokens] = pending + channels + own;
    }
    c.elements->pool_rows(scratch.values, scratch.gates, n_tokens, scratch.pooled, n);
    c.elements->rms_norm(scratch.pooled, a.norm_weight.as<float>(), a.eps, scratch.row, n);
    rotate_row(scratch.row, n, a.frequencies.as<float>(), a.frequencies.dim(0), first);
    store_row(a.cache.dtype, scratch.row,
              compressed_row(a.cache, a.step, a.pending.dim(1), sequence, last / a.ratio, a.ratio), n);
  });
}

}  // namespace fathom::cpu::fast
