#pragma once
#include "graph/graph.h"

namespace fathom {

/// What a sublayer reads of M residual streams, and how its output goes back to them.
struct CollapsedStreams {
  Tensor x;       ///< [T, D] sum_i pre_i * stream_i
  Tensor mixing;  ///< [T, M + M * M] post, then the matrix C [from][to]
};

/// Weights of one sublayer's hyper-connection, all f32 but `fn`, which may be of any type.
struct HyperConnectionWeights {
  Tensor fn;     ///< [(2 + M) * M, M * D]; of the head [M, M * D]
  Tensor base;   ///< [(2 + M) * M]; of the head [M]
  Tensor scale;  ///< [3]; of the head [1]
  template <typename F> void each(F&& f) { f(fn), f(base), f(scale); }
};

struct HyperConnectionParams {
  float norm_eps = 0;  ///< in the mean square of all streams
  float eps = 0;
  int iterations = 0;  ///< Sinkhorn rounds
};

/// m = (fn . streams) / sqrt(mean(streams^2) + norm_eps); pre = sigmoid(m * scale[0] + base) + eps, post =
/// 2 sigmoid(m * scale[1] + base), C = softmax over each row of (m * scale[2] + base) + eps, then columns divided by
/// their sums + eps, then iterations - 1 times rows and columns. streams [T, M * D] f32, M <= 16. Source:
/// arXiv:2512.24880.
CollapsedStreams collapse_streams(Graph& g, const Tensor& streams, const HyperConnectionWeights& w, int64_t n_streams,
                                  const HyperConnectionParams& params);

/// The same before the head, which gives nothing back: x alone, with pre as above.
Tensor collapse_streams_for_head(Graph& g, const Tensor& streams, const HyperConnectionWeights& w, int64_t n_streams,
                                 const HyperConnectionParams& params);

/// stream'_j = post_j * y + sum_i C[i][j] * stream_i: streams [T, M * D], y [T, D] f32 -> [T, M * D] f32.
Tensor expand_streams(Graph& g, const Tensor& streams, const Tensor& y, const Tensor& mixing);

constexpr int64_t kMaxStreams = 16;

}  // namespace fathom
