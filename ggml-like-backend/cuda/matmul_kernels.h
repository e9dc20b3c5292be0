// Between the launch functions of matmul.cu and the kernels, which are compiled one family of formats in a file: what a
// launch needs, and a table of launchers for every format. Plain host header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "cuda/matmul.h"

namespace fathom::cuda {

/// Rows of activations in the form that a format takes; only one of q and x is set.
struct ActRows {
  const int8_t* q = nullptr;
  const ActScale* scales = nullptr;
  const float* x = nullptr;
  int64_t stride = 0;  ///< elements between rows

  bool operator==(const ActRows&) const = default;
};

struct WeightRows {
  const uint8_t* data = nullptr;
  int64_t row_bytes = 0;     ///< between rows
  int64_t matrix_bytes = 0;  ///< between matrices: heads, experts
  int n_rows = 0;
  int k = 0;
};

/// out[c, r] = weight row r . activation row c (+ add[c, r]). blockIdx.z counts heads.
struct LinearTask {
  WeightRows w;
  float* out = nullptr;
  int64_t out_stride = 0, out_head = 0;  ///< floats between columns and between heads
  const float* add = nullptr;
  int64_t add_stride = 0;
};
struct LinearLaunch {
  LinearTask tasks[kMaxProducts];
  int n_tasks = 1;
  int n_heads = 1;
  ActRows x;  ///< column c of head h is row c * n_heads + h
  int n_columns = 0;
  NormOfResult norm;  ///< of one column: of task `finished`
  RouteByResult route;
  CollapseByResult collapse;
  ExpandResult expand;  ///< of the only task
  int finished = 0;
  int32_t* counter = nullptr;  ///< of its blocks
  const std::byte* grids = nullptr;
  Stream stream = nullptr;
};

/// Which tokens go to which expert; written by group_routes. Route r is choice r % K of token r / K.
struct RouteGroups {
  int32_t* n_groups = nullptr;    ///< [1] experts that have a token
  int32_t* expert = nullptr;      ///< [groups] rising
  int32_t* first = nullptr;       ///< [groups + 1] into order
  int32_t* order = nullptr;       ///< [T * K] routes by expert, then rising
  int32_t* n_tiles = nullptr;     ///< [1] of kTileColumns routes of one group
  int32_t* tile_group = nullptr;  ///< [tiles]
  int32_t* tile_first = nullptr;  ///< [tiles] into order
};
constexpr int kTileColumns = 64;
/// At most so many tiles: every expert's last one may be partly filled.
constexpr int64_t most_tiles(int64_t n_routes, int64_t n_experts) {
  return n_routes / kTileColumns + (n_routes < n_experts ? n_routes : n_experts);
}

/// One feed-forward network for a list of columns.
struct FfnWeights {
  WeightRows gate, up;  ///< F rows of D
  WeightRows down;      ///< D rows of F
};

/// A feed-forward network for the tokens of each expert, and the shared experts' for all. Shared rows are chosen by
/// has_shared alone.
struct FfnLaunch {
  int n_tokens = 0, n_used = 0;  ///< K; 0: no routed experts
  int n_experts = 0;
  bool routed = false, shared = false;  ///< what this launch computes
  bool has_shared = false;              ///< what the sum at the end has
  FfnWeights experts, shared_weights;   ///< matrix_bytes steps experts
  int first_expert = 0;                 ///< in tiles: that of experts' first matrix
  int n_experts_here = 0;               ///< in tiles: routes of others are left out
  const int32_t* expert_ids = nullptr;  ///< [K] of one token: every route is a group by itself; null: see groups
  RouteGroups groups;
  ActRows x;                              ///< [T, D]
  float clamp[2] = {kNoClamp, kNoClamp};  ///< of routed and shared hidden values
  QuantizedRows hidden_q[2];              ///< [T * K, F] of routed, [T, F] of shared, if down takes quantized rows
  float* hidden[2] = {};                  ///< else
  float* outputs = nullptr;               ///< [T * K + T, D] before the sum; the last T rows are the shared experts'
  const float* expert_weights = nullptr;  ///< [T, K]
  float* out = nullptr;                   ///< [T, D]
  const float* add = nullptr;             ///< [T, D] or null
  int64_t out_stride = 0, add_stride = 0, weights_stride = 0;
  NormOfResult norm;  ///< of one token
  ExpandResult expand;
  int32_t* counters = nullptr;   ///< of the networks that have finished a tile of rows
  int32_t* all_tiles = nullptr;  ///< of the tiles that are finished
  const std::byte* grids = nullptr;
  Stream stream = nullptr;
};

/// Rows of weights to floats: out row r is row r of w, or row ids[r / copies].
struct DecodeLaunch {
  WeightRows w;
  const int32_t* ids = nullptr;
  int copies = 1;  ///< rows of out for each of `ids`
  int64_t n_rows = 0;
  float* out_f32 = nullptr;  ///< packed rows; one of the two
  uint16_t* out_bf16 = nullptr;
  const std::byte* grids = nullptr;
  Stream stream = nullptr;
};

/// The kernels of one format. Columns up to kGemvTokens for the gemv forms.
struct FormatLaunchers {
  void (*linear_gemv)(const LinearLaunch&);
  void (*gate_up_gemv)(const FfnLaunch&);
  void (*down_gemv)(const FfnLaunch&);
  void (*linear_tiles)(const LinearLaunch&);
  void (*ffn_tiles)(const FfnLaunch&,
                    bool down);  ///< routed or shared; gate and up to `hidden` (f32), or down to `outputs`
  void (*decode)(const DecodeLaunch&);
};

/// One launch for experts and shared experts of two types; null: no kernel, two launches do it.
using FfnLauncher = void (*)(const FfnLaunch&);
FfnLauncher mixed_gate_up_launcher(DType routed, DType shared);
FfnLauncher mixed_down_launcher(DType routed, DType shared);

// Each knows the formats of its own file, null for others.
const FormatLaunchers* simple_launchers(DType dtype);
const FormatLaunchers* k_launchers(DType dtype);
const FormatLaunchers* iq_launchers(DType dtype);
const FormatLaunchers* float_launchers(DType dtype);

}  // namespace fathom::cuda
