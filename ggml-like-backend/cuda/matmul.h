// Matrix products on the device: linear layers, feed-forward networks and mixtures of experts over weights of every
// type.
//
// Weights lie on the device in their planes (weight_layout.h): the bytes of the file's blocks, sorted within each row
// so that every load is whole and aligned. A weight tensor there keeps its type and shape; strides_bytes say how far
// its rows are apart. Quantized weights are multiplied with activations rounded to int8, one scale for 32, as the CPU
// kernels do; F32, F16, BF16 and F8_E4M3 weights with activations in f32. Sums in f32. With up to kGemvTokens tokens a
// step a token's result is the same bits whatever else is in the step.
//
// All functions only launch kernels on the context's stream: no allocation, no synchronization, nothing read on the
// host but the arguments, so that they can be captured. Tensors are checked (FATHOM_CHECK), types by check_weights at
// load time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/node.h"
#include "cuda/stream.h"

namespace fathom::cuda {

constexpr int kGemvTokens = 16;                     ///< up to here a step reads weights row by row, beyond in tiles
constexpr int kTileCounters = 4096;                 ///< one for every 32 values of a result
constexpr int kMatmulCounters = kTileCounters + 1;  ///< int32 of MatmulContext::counters; the last one counts a launch

struct MatmulContext {
  Stream stream = nullptr;
  std::byte* workspace =
      nullptr;  ///< 256-byte aligned device memory, as large as the *_workspace function of the call says
  const std::byte* grids = nullptr;  ///< device copy of write_grid_tables, 256-byte aligned
  int32_t* counters = nullptr;       ///< kMatmulCounters zeros on the device; every call leaves them zero
};

/// Tables of the IQ formats: written once by the host, copied to the device.
size_t grid_tables_bytes();
void write_grid_tables(std::byte* host);

// ---- weights ----

/// Whether weights of this type can be multiplied on the device.
bool supports_weights(DType dtype);
/// Throws Error{kModel} naming `operation` if the types of a node's weights cannot be multiplied here. Call at load.
void check_weights(const LinearArgs& a);
void check_weights(const GroupedLinearArgs& a);
void check_weights(const GatedFfnArgs& a);
void check_weights(const MoeFfnArgs& a);

/// Sorts rows of k elements as a file holds them (device memory, packed) into planes at `out`, rows
/// weight_row_bytes(dtype, k) apart (weight_layout.h). file_rows may have any alignment, out is 16-byte aligned; they
/// must not overlap.
void arrange_weights(DType dtype, const std::byte* file_rows, int64_t n_rows, int64_t k, std::byte* out, Stream stream);

/// Rows of weights in planes to f32 or bf16, packed: out [n_rows, k]. weight [n_rows, k] or [E, n_rows, k].
void decode_weights(const Tensor& weight, const Tensor& out, const MatmulContext& c);
void embed_rows(const EmbedRowsArgs& a, const MatmulContext& c);  ///< table in planes; no workspace

// ---- activations ----

/// 32 activations x = d * q. The halves' sums carry offsets and minima of weights.
struct alignas(8) ActScale {
  float d;
  int16_t sum[2];  ///< of q[0..15] and q[16..31]
};

/// Rows of k activations in int8: row r at q + r * k, its scales at scales + r * k / 32. k is a multiple of 32.
struct QuantizedRows {
  int8_t* q = nullptr;
  ActScale* scales = nullptr;
  int64_t k = 0;
};
size_t quantized_rows_bytes(int64_t n_rows, int64_t k);  ///< a multiple of 256
QuantizedRows quantized_rows_at(std::byte* memory, int64_t n_rows, int64_t k);
/// Whether products with weights of this type take quantized rows (else f32).
bool takes_quantized_rows(DType weight);
/// x [R, k] f32, rows strides_bytes[0] apart.
void quantize_rows(const Tensor& x, const QuantizedRows& out, Stream stream);

// ---- products ----

/// In a step of one token the block that ends last may go on with the whole result, in the arithmetic of the kernel it
/// saves: one launch less. The norm of it (rms_norm), also in int8 if that has memory.
struct NormOfResult {
  const float* weight = nullptr;
  float* out = nullptr;  ///< null: no norm
  float eps = 0;
  QuantizedRows quantized{};
};
/// A router's parameters as kernels take them.
struct RouterSizes {
  int n_experts, n_used, n_groups, n_groups_used;
  RouterScore score;
  bool ranks_by_two, normalizes;
  float scale;
};
/// Or the choice of experts by the result's logits (route_experts); of plain weights only.
struct RouteByResult {
  const float* bias = nullptr;
  int* ids = nullptr;  ///< null: no choice
  float* weights = nullptr;
  RouterSizes sizes{};
};
/// Or the collapse of residual streams by the result's coefficients (collapse_streams) and its norm; of plain weights
/// only.
struct CollapseByResult {
  const float* streams = nullptr;   ///< [T, M * D]
  const float* products = nullptr;  ///< [T, (2 + M) * M] or [T, M]
  const float* base = nullptr;
  const float* scale = nullptr;
  float* out = nullptr;     ///< [T, D]; null: no collapse
  float* mixing = nullptr;  ///< [T, M + M * M] or null
  int n_streams = 0, width = 0;
  float norm_eps = 0, eps = 0;
  int iterations = 0;
  NormOfResult norm{};  ///< of out [D]
};

/// The result spread over residual streams (expand_streams) in place of being written.
struct ExpandResult {
  const float* streams = nullptr;  ///< [T, M * D], may be `out` itself
  const float* mixing = nullptr;   ///< [T, M + M * M]
  float* out = nullptr;            ///< [T, M * D]; null: the result is written
  int n_streams = 0;
};

/// Brings experts' weights to the device while moe_ffn runs, for steps of more than kGemvTokens tokens: all gates and
/// ups, then all downs, in parts.
class ExpertSource {
 public:
  enum class Half { kGateUp, kDown };
  struct Part {
    int64_t first = 0, n = 0;  ///< experts
    GatedFfnWeights weights;   ///< of a half [n, ..], in planes
  };
  virtual ~ExpertSource() = default;
  virtual int64_t n_parts(Half half) const = 0;
  /// Kernels that are launched from now on find the part there.
  virtual Part bring(Half half, int64_t part) = 0;
  /// Kernels that were launched so far are the last ones to read the last part.
  virtual void release() = 0;
};

/// What a caller may already have, or want on top.
struct MatmulOptions {
  QuantizedRows quantized_x{};     ///< x in int8, made by whoever wrote x; empty: made here in the workspace
  Tensor add{};                    ///< [T, O] f32, added to the result; may be `out` itself. Empty: nothing
  NormOfResult norm{};             ///< of a step of one token
  RouteByResult route{};           ///< likewise; of linear
  CollapseByResult collapse{};     ///< likewise
  ExpandResult expand{};           ///< of linear of one token and of moe_ffn; without `add` and `norm`
  bool has_groups = false;         ///< of moe_ffn: group_routes was called with this step's ids
  ExpertSource* source = nullptr;  ///< of moe_ffn: where experts come from; null: args.experts are on the device
};

size_t linear_workspace(const LinearArgs& a);
void linear(const LinearArgs& a, const MatmulContext& c, const MatmulOptions& options = {});

/// Several products of one x in one launch where types allow, e.g. q_a and kv_a. All x are the same tensor.
/// n_products is at most kMaxProducts; workspace: the largest of linear_workspace. options.norm and options.route are
/// of product `finished`.
constexpr int kMaxProducts = 8;  ///< of V4's attention: 7
void linear_group(const LinearArgs* products, int n_products, const MatmulContext& c, const MatmulOptions& options = {},
                  int finished = 0);

/// A product for each head: out[t, h, :] = weight[h] x[t, h, :]. x [T, H, I] f32 with any strides of t and h, weight
/// [H, O, I], out [T, H, O] f32 with any strides of t and h.
struct HeadLinearArgs {
  Tensor x, weight, out;
};
size_t head_linear_workspace(const HeadLinearArgs& a);
/// options.quantized_x: rows (token, head) one after the other; nothing else of the options.
void head_linear(const HeadLinearArgs& a, const MatmulContext& c, const MatmulOptions& options = {});

/// The same for x [T, G * I], weight [G * O, I], out [T, G * O], packed.
size_t grouped_linear_workspace(const GroupedLinearArgs& a);
void grouped_linear(const GroupedLinearArgs& a, const MatmulContext& c, const MatmulOptions& options = {});

size_t gated_ffn_workspace(const GatedFfnArgs& a);
void gated_ffn(const GatedFfnArgs& a, const MatmulContext& c, const MatmulOptions& options = {});

/// Expert ids are read on the device alone; they must lie in [0, E).
size_t moe_ffn_workspace(const MoeFfnArgs& a);
/// The choice of experts and, in the same launch, the order of moe_ffn's routes in its workspace: for steps that
/// routes_are_few() says, the next call on the workspace being moe_ffn with has_groups.
bool routes_are_few(const MoeFfnArgs& a);
void route_and_group(const RouteExpertsArgs& a, const MoeFfnArgs& next, const MatmulContext& c);
void moe_ffn(const MoeFfnArgs& a, const MatmulContext& c, const MatmulOptions& options = {});

}  // namespace fathom::cuda
