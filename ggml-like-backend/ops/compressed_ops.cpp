// The contracts of V4's operations, checked as a node is made.
#include "ops/checks.h"
#include "ops/compressed_attention.h"
#include "ops/hyper_connections.h"
#include "ops/linear.h"

namespace fathom {

Tensor grouped_linear(Graph& g, const Tensor& x, const Tensor& weight) {
  expect_f32(x, 2, "x");
  FATHOM_CHECK(weight.shape.rank == 2 && weight.dim(1) > 0 && x.dim(1) % weight.dim(1) == 0 &&
                   weight.dim(0) % (x.dim(1) / weight.dim(1)) == 0,
               "weight " + weight.describe() + " does not fit groups of x " + x.describe());
  Tensor out = g.new_value(DType::kF32, {x.dim(0), weight.dim(0)});
  g.add(GroupedLinearArgs{x, weight, out});
  return out;
}

namespace {

CollapsedStreams add_collapse(Graph& g, const Tensor& streams, const HyperConnectionWeights& w, int64_t m,
                              const HyperConnectionParams& params, bool is_head) {
  expect_f32(streams, 2, "streams");
  expect_f32(w.base, 1, "base");
  expect_f32(w.scale, 1, "scale");
  FATHOM_CHECK(m >= 1 && m <= kMaxStreams && streams.dim(1) % m == 0,
               std::to_string(m) + " streams in " + streams.describe());
  FATHOM_CHECK(is_head || params.iterations >= 1, "the mixing matrix is normalized at least once");
  const int64_t n = is_head ? m : (2 + m) * m;
  expect_shape(w.fn, {n, streams.dim(1)}, "fn");
  expect_shape(w.base, {n}, "base");
  expect_shape(w.scale, {is_head ? 1 : 3}, "scale");
  const Tensor products = linear(g, streams, w.fn);
  CollapsedStreams collapsed{g.new_value(DType::kF32, {streams.dim(0), streams.dim(1) / m}), {}};
  if (!is_head) collapsed.mixing = g.new_value(DType::kF32, {streams.dim(0), m + m * m});
  g.add(CollapseStreamsArgs{streams, products, w.base, w.scale, collapsed.x, collapsed.mixing, params.norm_eps,
                            params.eps, params.iterations});
  return collapsed;
}

}  // namespace

CollapsedStreams collapse_streams(Graph& g, const Tensor& streams, const HyperConnectionWeights& w, int64_t n_streams,
                                  const HyperConnectionParams& params) {
  return add_collapse(g, streams, w, n_streams, params, false);
}

Tensor collapse_streams_for_head(Graph& g, const Tensor& streams, const HyperConnectionWeights& w, int64_t n_streams,
                                 const HyperConnectionParams& params) {
  return add_collapse(g, streams, w, n_streams, params, true).x;
}

Tensor expand_streams(Graph& g, const Tensor& streams, const Tensor& y, const Tensor& mixing) {
  expect_f32(streams, 2, "streams");
  expect_f32(y, 2, "y");
  expect_f32(mixing, 2, "mixing");
  FATHOM_CHECK(y.dim(0) == streams.dim(0) && streams.dim(1) % y.dim(1) == 0,
               "y " + y.describe() + " does not fit streams " + streams.describe());
  const int64_t m = streams.dim(1) / y.dim(1);
  expect_shape(mixing, {y.dim(0), m + m * m}, "mixing");
  Tensor out = g.new_value(DType::kF32, streams.shape);
  g.add(ExpandStreamsArgs{streams, y, mixing, out});
  return out;
}

CompressorProducts compressor_products(Graph& g, const Tensor& x, const CompressorWeights& w) {
  const Tensor kv = linear(g, x, w.kv_proj), gate = linear(g, x, w.gate_proj);
  expect_shape(kv, {x.dim(0), w.positional.dim(1)}, "kv");
  expect_shape(gate, kv.shape, "gate");
  return {kv, gate};
}

void compress_rows(Graph& g, const CompressorProducts& products, const CompressorWeights& w, const Tensor& frequencies,
                   const StepTensors& step, const CompressorCache& cache, int64_t ratio, float eps) {
  const auto& [kv, gate] = products;
  expect_f32(kv, 2, "kv");
  expect_f32(gate, 2, "gate");
  expect_shape(gate, kv.shape, "gate");
  expect_f32(w.norm, 1, "norm");
  expect_f32(w.positional, 2, "positional");
  expect_f32(frequencies, 1, "frequencies");
  expect_f32(cache.pending, 3, "pending");
  expect_i32(step.slots, 1, "slots");
  expect_step(step, kv.dim(0));
  const int64_t n = w.norm.dim(0), channels = w.positional.dim(1), page_tokens = cache.pending.dim(1);
  FATHOM_CHECK(ratio >= 1 && (page_tokens % ratio == 0 || ratio % page_tokens == 0),
               "rows of " + std::to_string(ratio) + " tokens in pages of " + std::to_string(page_tokens));
  FATHOM_CHECK((channels == n || channels == 2 * n) && 2 * frequencies.dim(0) <= n, "channels of a compressor");
  expect_shape(w.positional, {ratio, channels}, "positional");
  expect_shape(cache.pending, {cache.pending.dim(0), page_tokens, 2 * channels}, "pending");
  expect_shape(cache.rows, {cache.pending.dim(0), std::max<int64_t>(1, page_tokens / ratio), n}, "rows");
  expect_shape(kv, {kv.dim(0), channels}, "kv");
  g.add(CompressRowsArgs{kv, gate, w.positional, w.norm, frequencies, cache.pending, cache.rows, step, ratio, eps});
}

Tensor compressed_attention(Graph& g, const Tensor& q, const Tensor& window, const Tensor& compressed,
                            const Tensor& chosen, const Tensor& sinks, const StepTensors& step,
                            const CompressedAttentionParams& params) {
  expect_f32(q, 3, "q");
  expect_f32(sinks, 1, "sinks");
  expect_shape(sinks, {q.dim(1)}, "sinks");
  expect_step(step, q.dim(0));
  FATHOM_CHECK(window.shape.rank == 3 && window.dim(2) == q.dim(2) && params.window_tokens >= 1,
               "q " + q.describe() + " does not fit the window's cache " + window.describe());
  if (compressed) {
    FATHOM_CHECK(params.ratio >= 1, "a compressed row stands for tokens");
    expect_shape(compressed, {window.dim(0), std::max<int64_t>(1, window.dim(1) / params.ratio), q.dim(2)},
                 "compressed");
  }
  if (chosen) {
    expect_i32(chosen, 2, "chosen");
    FATHOM_CHECK(static_cast<bool>(compressed) && chosen.dim(0) == q.dim(0), "chosen rows for every token");
  }
  Tensor out = g.new_value(DType::kF32, {q.dim(0), q.dim(1) * q.dim(2)});
  g.add(CompressedAttentionArgs{q, window, compressed, chosen, sinks, step, out, params.scale, params.window_tokens,
                                params.ratio});
  return out;
}

}  // namespace fathom
