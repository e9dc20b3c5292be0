// The launch functions of matmul.h: checks, workspace, and which kernels in which order.
#include "cuda/matmul.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "cuda/matmul_kernels.h"
#include "cuda/prepare.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

const FormatLaunchers* find_launchers(DType dtype) {
  for (const auto find : {simple_launchers, k_launchers, iq_launchers, float_launchers}) {
    if (const FormatLaunchers* l = find(dtype)) return l;
  }
  return nullptr;
}

const FormatLaunchers& launchers(DType dtype) {
  const FormatLaunchers* l = find_launchers(dtype);
  FATHOM_CHECK(l != nullptr, "no device kernels for weights of type " + std::string(dtype_name(dtype)));
  return *l;
}

size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }
size_t float_bytes(int64_t n) { return rounded(static_cast<size_t>(n) * sizeof(float)); }

/// Takes pieces of the workspace; without memory it only counts.
class Workspace {
 public:
  explicit Workspace(std::byte* memory) : memory_(memory) {}
  std::byte* take(size_t bytes) {
    std::byte* p = memory_ != nullptr ? memory_ + used_ : nullptr;
    used_ += rounded(bytes);
    return p;
  }
  QuantizedRows take_quantized(int64_t n_rows, int64_t k) {
    return quantized_rows_at(take(quantized_rows_bytes(n_rows, k)), n_rows, k);
  }
  float* take_floats(int64_t n) { return reinterpret_cast<float*>(take(float_bytes(n))); }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

WeightRows weight_rows(const Tensor& w) {
  const int r = w.shape.rank;
  const auto row_bytes = w.strides_bytes[static_cast<size_t>(r - 2)];
  const int64_t matrix_bytes = r == 3 ? w.strides_bytes[0] : 0;
  FATHOM_CHECK(reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && row_bytes % 16 == 0 && matrix_bytes % 16 == 0 &&
                   row_bytes >= weight_row_bytes(w.dtype, w.dim(r - 1)),
               "weights " + w.describe() + " do not lie in planes");
  return {reinterpret_cast<const uint8_t*>(w.data), row_bytes, matrix_bytes, static_cast<int>(w.dim(r - 2)),
          static_cast<int>(w.dim(r - 1))};
}

int64_t floats_between_rows(const Tensor& t) { return t.strides_bytes[0] / static_cast<int64_t>(sizeof(float)); }

/// x as weights of this type take it.
ActRows act_rows(DType weight, const QuantizedRows& q, const Tensor& x) {
  if (takes_quantized_rows(weight)) return {q.q, q.scales, nullptr, q.k};
  return {nullptr, nullptr, x.as<const float>(), floats_between_rows(x)};
}

RowsToQuantize rows_of(const Tensor& x, const QuantizedRows& out) {
  return {x.as<const float>(), floats_between_rows(x), 0, x.dim(0), 1, out};
}

LinearTask linear_task(const LinearArgs& a, const Tensor& add) {
  LinearTask t{weight_rows(a.weight), a.out.as<float>(), floats_between_rows(a.out), 0, nullptr, 0};
  if (add) {
    t.add = add.as<const float>();
    t.add_stride = floats_between_rows(add);
  }
  return t;
}

void check_type(const Tensor& w, const char* operation) {
  if (w && find_launchers(w.dtype) == nullptr) {
    throw Error(ErrorCode::kModel, std::string("cuda: operation ") + operation + " has no kernel for weights of type " +
                                       std::string(dtype_name(w.dtype)) + "; try the CPU, or convert the file");
  }
}

void check_ffn(const GatedFfnWeights& w, const char* operation) {
  for (const Tensor& t : {w.gate, w.up, w.down}) check_type(t, operation);
  if (w.gate && w.gate.dtype != w.up.dtype) {
    throw Error(ErrorCode::kModel, std::string("cuda: operation ") + operation +
                                       " has gate and up weights of two types; expected one, got " +
                                       std::string(dtype_name(w.gate.dtype)) + " and " +
                                       std::string(dtype_name(w.up.dtype)) + "; try the CPU");
  }
}

void run_linear(const LinearLaunch& l, DType dtype) {
  l.n_columns <= kGemvTokens ? launchers(dtype).linear_gemv(l) : launchers(dtype).linear_tiles(l);
}

// ---- feed-forward networks ----

/// A mixture of experts, or one network as the shared expert of none.
struct FfnProblem {
  Tensor x, ids, expert_weights, out;
  const GatedFfnWeights* routed = nullptr;
  const GatedFfnWeights* shared = nullptr;
  float clamp = kNoClamp, shared_clamp = kNoClamp;

  int64_t n_tokens() const { return x.dim(0); }
  int64_t n_used() const { return routed != nullptr ? ids.dim(1) : 0; }
  int64_t n_experts() const { return routed != nullptr ? routed->gate.dim(0) : 0; }
  int64_t n_routes() const { return n_tokens() * n_used(); }
  bool in_tiles() const { return n_tokens() > kGemvTokens; }
};

FfnProblem problem_of(const GatedFfnArgs& a) { return {a.x, {}, {}, a.out, nullptr, &a.weights, kNoClamp, a.clamp}; }
FfnProblem problem_of(const MoeFfnArgs& a) {
  return {a.x,     a.expert_ids,  a.expert_weights, a.out, &a.experts, a.shared.gate ? &a.shared : nullptr,
          a.clamp, a.shared_clamp};
}

/// The memory of a run; the same walk counts and places it.
struct FfnMemory {
  RouteGroups groups;
  QuantizedRows x, hidden_q[2];
  float* hidden[2] = {};
  float* outputs = nullptr;

  FfnMemory(const FfnProblem& p, Workspace& w) {
    if (p.routed != nullptr)
      groups = route_groups_at(w.take(route_groups_bytes(p.n_routes(), p.n_experts())), p.n_routes(), p.n_experts());
    x = p.x.dim(1) % 32 == 0 ? w.take_quantized(p.n_tokens(), p.x.dim(1)) : QuantizedRows{};
    for (int i = 0; i < 2; ++i) {
      const GatedFfnWeights* weights = i == 0 ? p.routed : p.shared;
      if (weights == nullptr) continue;
      const int64_t n_rows = i == 0 ? p.n_routes() : p.n_tokens(), width = weights->down.shape.last();
      const bool quantized = takes_quantized_rows(weights->down.dtype);
      if (quantized) hidden_q[i] = w.take_quantized(n_rows, width);
      if (!quantized || p.in_tiles()) hidden[i] = w.take_floats(n_rows * width);
    }
    outputs = w.take_floats((p.n_routes() + p.n_tokens()) * p.x.dim(1));
  }
};

size_t ffn_workspace(const FfnProblem& p) {
  Workspace w(nullptr);
  FfnMemory(p, w);
  return w.used();
}

FfnWeights ffn_weights(const GatedFfnWeights* w) {
  return w == nullptr ? FfnWeights{} : FfnWeights{weight_rows(w->gate), weight_rows(w->up), weight_rows(w->down)};
}

/// Runs `each` for the routed experts and the shared ones: once where one launch can do both.
template <typename Each>
void for_networks(const FfnProblem& p, const FfnLaunch& all, const Tensor GatedFfnWeights::*weight, bool together,
                  Each&& each) {
  FfnLaunch l = all;
  if (together && p.routed != nullptr && p.shared != nullptr &&
      (p.routed->*weight).dtype == (p.shared->*weight).dtype) {
    l.routed = l.shared = true;
    each(l, (p.shared->*weight).dtype);
    return;
  }
  for (const bool routed : {true, false}) {
    const GatedFfnWeights* w = routed ? p.routed : p.shared;
    if (w == nullptr) continue;
    l.routed = routed;
    l.shared = !routed;
    each(l, (w->*weight).dtype);
  }
}

/// In tiles, one of the two networks: all its experts, or as they are brought.
void run_tiles(const FfnLaunch& all, DType type, ExpertSource::Half half, ExpertSource* source) {
  const bool down = half == ExpertSource::Half::kDown;
  if (!all.routed || source == nullptr) return launchers(type).ffn_tiles(all, down);
  FfnLaunch l = all;
  for (int64_t i = 0; i < source->n_parts(half); ++i) {
    const ExpertSource::Part part = source->bring(half, i);
    l.first_expert = static_cast<int>(part.first);
    l.n_experts_here = static_cast<int>(part.n);
    if (down) {
      l.experts.down = weight_rows(part.weights.down);
    } else {
      l.experts.gate = weight_rows(part.weights.gate);
      l.experts.up = weight_rows(part.weights.up);
    }
    launchers(type).ffn_tiles(l, down);
    source->release();
  }
}

void run_ffn(const FfnProblem& p, const MatmulContext& c, const MatmulOptions& options) {
  if (p.n_tokens() == 0) return;
  FATHOM_CHECK(p.x.dim(1) <= int64_t{32} * kTileCounters,
               "a counter for every 32 of " + std::to_string(p.x.dim(1)) + " values");
  Workspace workspace(c.workspace);
  const FfnMemory m(p, workspace);
  const QuantizedRows x = options.quantized_x.q != nullptr ? options.quantized_x : m.x;
  bool needs_quantized = false;
  for (const GatedFfnWeights* w : {p.routed, p.shared})
    needs_quantized |= w != nullptr && takes_quantized_rows(w->gate.dtype);
  RowsToQuantize to_quantize = rows_of(p.x, x);
  if (!needs_quantized || options.quantized_x.q != nullptr) to_quantize.n_rows = 0;

  FfnLaunch l;
  l.n_tokens = static_cast<int>(p.n_tokens());
  l.n_used = static_cast<int>(p.n_used());
  l.n_experts = static_cast<int>(p.n_experts());
  l.has_shared = p.shared != nullptr;
  l.n_experts_here = l.n_experts;
  FATHOM_CHECK(options.source == nullptr || (p.routed != nullptr && p.in_tiles()),
               "experts are brought for many tokens");
  if (options.source == nullptr) l.experts = ffn_weights(p.routed);
  l.shared_weights = ffn_weights(p.shared);
  l.groups = m.groups;
  for (int i = 0; i < 2; ++i) {
    l.hidden_q[i] = m.hidden_q[i];
    l.hidden[i] = m.hidden[i];
  }
  l.outputs = m.outputs;
  l.clamp[0] = p.clamp, l.clamp[1] = p.shared_clamp;
  if (p.routed != nullptr) {
    FATHOM_CHECK(p.ids.is_contiguous(), "expert ids are packed");
    l.expert_weights = p.expert_weights.as<const float>();
    l.weights_stride = floats_between_rows(p.expert_weights);
  }
  l.out = p.out.as<float>();
  l.out_stride = floats_between_rows(p.out);
  if (options.add) {
    l.add = options.add.as<const float>();
    l.add_stride = floats_between_rows(options.add);
  }
  l.expand = options.expand;
  l.counters = c.counters;
  l.all_tiles = c.counters + kTileCounters;
  if (options.norm.out != nullptr) {
    FATHOM_CHECK(p.n_tokens() == 1 && !p.in_tiles(), "the norm of one token's result");
    l.norm = options.norm;
  }
  l.grids = c.grids;
  l.stream = c.stream;

  if (p.routed != nullptr && p.n_tokens() == 1) {
    l.expert_ids = p.ids.as<const int32_t>();
    launch_quantize(to_quantize, c.stream);
  } else if (p.routed != nullptr && !options.has_groups) {
    launch_prepare(p.ids, l.n_experts, m.groups, to_quantize, c.stream);
  } else {
    launch_quantize(to_quantize, c.stream);
  }
  const bool tiles = p.in_tiles();
  auto mixed_launcher = [&](auto find, const Tensor GatedFfnWeights::*weight) -> FfnLauncher {
    if (tiles || p.routed == nullptr || p.shared == nullptr) return nullptr;
    return find((p.routed->*weight).dtype, (p.shared->*weight).dtype);
  };
  auto run_mixed = [&](FfnLauncher launcher, const ActRows& rows) {
    FfnLaunch launch = l;
    launch.routed = launch.shared = true;
    launch.x = rows;
    launcher(launch);
  };
  if (const FfnLauncher mixed = mixed_launcher(mixed_gate_up_launcher, &GatedFfnWeights::gate)) {
    run_mixed(mixed, act_rows(p.routed->gate.dtype, x, p.x));
  } else {
    for_networks(p, l, &GatedFfnWeights::gate, !tiles, [&](FfnLaunch& launch, DType type) {
      launch.x = act_rows(type, x, p.x);
      if (!tiles) return launchers(type).gate_up_gemv(launch);
      run_tiles(launch, type, ExpertSource::Half::kGateUp, options.source);
      const int which = launch.routed ? 0 : 1;
      const QuantizedRows& q = m.hidden_q[which];
      if (q.q != nullptr)
        launch_quantize({m.hidden[which], q.k, 0, launch.routed ? p.n_routes() : p.n_tokens(), 1, q}, c.stream);
    });
  }
  if (const FfnLauncher mixed = mixed_launcher(mixed_down_launcher, &GatedFfnWeights::down)) {
    run_mixed(mixed, {});
  } else {
    for_networks(p, l, &GatedFfnWeights::down, !tiles, [&](FfnLaunch& launch, DType type) {
      tiles ? run_tiles(launch, type, ExpertSource::Half::kDown, options.source) : launchers(type).down_gemv(launch);
    });
  }
  if (tiles) launch_sum_outputs(l, static_cast<int>(p.x.dim(1)));
}

}  // namespace

bool supports_weights(DType dtype) { return find_launchers(dtype) != nullptr; }

void check_weights(const LinearArgs& a) { check_type(a.weight, "linear"); }
void check_weights(const GroupedLinearArgs& a) { check_type(a.weight, "grouped_linear"); }
void check_weights(const GatedFfnArgs& a) { check_ffn(a.weights, "gated_ffn"); }
void check_weights(const MoeFfnArgs& a) {
  check_ffn(a.experts, "moe_ffn");
  check_ffn(a.shared, "moe_ffn");
  if (a.experts.gate.dim(0) > kMaxExperts) {
    throw Error(ErrorCode::kModel, "cuda: operation moe_ffn has too many experts; expected at most " +
                                       std::to_string(kMaxExperts) + ", got " + std::to_string(a.experts.gate.dim(0)) +
                                       "; try the CPU");
  }
}

bool takes_quantized_rows(DType weight) { return dtype_info(weight).is_quantized; }

size_t quantized_rows_bytes(int64_t n_rows, int64_t k) {
  return rounded(static_cast<size_t>(n_rows * k)) + rounded(static_cast<size_t>(n_rows * k / 32) * sizeof(ActScale));
}

QuantizedRows quantized_rows_at(std::byte* memory, int64_t n_rows, int64_t k) {
  FATHOM_CHECK(k % 32 == 0, "activations are rounded in blocks of 32, not in rows of " + std::to_string(k));
  if (memory == nullptr) return {nullptr, nullptr, k};
  return {reinterpret_cast<int8_t*>(memory),
          reinterpret_cast<ActScale*>(memory + rounded(static_cast<size_t>(n_rows * k))), k};
}

void quantize_rows(const Tensor& x, const QuantizedRows& out, Stream stream) {
  FATHOM_CHECK(x.dtype == DType::kF32 && x.shape.rank == 2 && x.dim(1) == out.k,
               x.describe() + " is not what was to be rounded");
  launch_quantize(rows_of(x, out), stream);
}

size_t linear_workspace(const LinearArgs& a) {
  return takes_quantized_rows(a.weight.dtype) ? quantized_rows_bytes(a.x.dim(0), a.x.dim(1)) : 0;
}

namespace {

/// What the last block does; `a` is product `task` of the launch.
void finish(LinearLaunch& l, int task, const LinearArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  const bool needs_plain = options.route.ids != nullptr || options.collapse.out != nullptr;
  if (options.norm.out == nullptr && !needs_plain) return;
  FATHOM_CHECK(l.n_columns == 1 && (!needs_plain || !takes_quantized_rows(a.weight.dtype)),
               "one token's result; of plain weights for the choice of experts and the collapse of streams");
  l.norm = options.norm;
  l.route = options.route;
  l.collapse = options.collapse;
  l.finished = task;
  l.counter = c.counters + kTileCounters;
}

}  // namespace

void linear(const LinearArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  if (a.x.dim(0) == 0) return;
  LinearLaunch l;
  l.tasks[0] = linear_task(a, options.add);
  l.n_columns = static_cast<int>(a.x.dim(0));
  l.grids = c.grids;
  l.stream = c.stream;
  QuantizedRows q = options.quantized_x;
  if (takes_quantized_rows(a.weight.dtype) && q.q == nullptr) {
    q = quantized_rows_at(c.workspace, a.x.dim(0), a.x.dim(1));
    launch_quantize(rows_of(a.x, q), c.stream);
  }
  l.x = act_rows(a.weight.dtype, q, a.x);
  FATHOM_CHECK(options.expand.out == nullptr || l.n_columns == 1, "one token's result on streams");
  l.expand = options.expand;
  finish(l, 0, a, c, options);
  run_linear(l, a.weight.dtype);
}

void linear_group(const LinearArgs* products, int n_products, const MatmulContext& c, const MatmulOptions& options,
                  int finished) {
  FATHOM_CHECK(n_products >= 1 && n_products <= kMaxProducts, "a group of " + std::to_string(n_products) + " products");
  const Tensor& x = products[0].x;
  if (x.dim(0) == 0) return;
  QuantizedRows q = options.quantized_x;
  bool done[kMaxProducts] = {};
  for (int i = 0; i < n_products; ++i) {
    FATHOM_CHECK(products[i].x.data == x.data && products[i].x.shape == x.shape, "products of one x");
    if (done[i]) continue;
    const DType dtype = products[i].weight.dtype;
    if (takes_quantized_rows(dtype) && q.q == nullptr) {
      q = quantized_rows_at(c.workspace, x.dim(0), x.dim(1));
      launch_quantize(rows_of(x, q), c.stream);
    }
    LinearLaunch l;
    l.n_tasks = 0;
    l.n_columns = static_cast<int>(x.dim(0));
    for (int j = i; j < n_products; ++j) {
      if (done[j] || products[j].weight.dtype != dtype) continue;
      if (j == finished) finish(l, l.n_tasks, products[j], c, options);
      l.tasks[l.n_tasks++] = linear_task(products[j], {});
      done[j] = true;
    }
    l.grids = c.grids;
    l.stream = c.stream;
    l.x = act_rows(dtype, q, x);
    run_linear(l, dtype);
  }
}

size_t head_linear_workspace(const HeadLinearArgs& a) {
  return takes_quantized_rows(a.weight.dtype) ? quantized_rows_bytes(a.x.dim(0) * a.x.dim(1), a.x.dim(2)) : 0;
}

void head_linear(const HeadLinearArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  FATHOM_CHECK(
      a.x.shape.rank == 3 && a.weight.shape.rank == 3 && a.weight.dim(0) == a.x.dim(1) &&
          a.weight.dim(2) == a.x.dim(2) && a.out.shape == Shape({a.x.dim(0), a.x.dim(1), a.weight.dim(1)}),
      "heads: x " + a.x.describe() + ", weight " + a.weight.describe() + ", out " + a.out.describe() + " do not fit");
  const int64_t n_tokens = a.x.dim(0), n_heads = a.x.dim(1), k = a.x.dim(2);
  if (n_tokens == 0) return;
  auto floats = [](const Tensor& t, size_t dim) { return t.strides_bytes[dim] / static_cast<int64_t>(sizeof(float)); };
  LinearLaunch l;
  l.tasks[0] = {weight_rows(a.weight), a.out.as<float>(), floats(a.out, 0), floats(a.out, 1), nullptr, 0};
  l.n_heads = static_cast<int>(n_heads);
  l.n_columns = static_cast<int>(n_tokens);
  l.grids = c.grids;
  l.stream = c.stream;
  if (takes_quantized_rows(a.weight.dtype)) {
    QuantizedRows q = options.quantized_x;
    if (q.q == nullptr) {
      q = quantized_rows_at(c.workspace, n_tokens * n_heads, k);
      launch_quantize({a.x.as<const float>(), floats(a.x, 0), floats(a.x, 1), n_tokens * n_heads, n_heads, q},
                      c.stream);
    }
    l.x = {q.q, q.scales, nullptr, k};
  } else {
    FATHOM_CHECK(floats(a.x, 0) == n_heads * floats(a.x, 1), "plain weights want heads at even distances");
    l.x = {nullptr, nullptr, a.x.as<const float>(), floats(a.x, 1)};
  }
  run_linear(l, a.weight.dtype);
}

namespace {

/// Groups as heads: x [T, G, I], weight [G, O, I], out [T, G, O].
HeadLinearArgs as_heads(const GroupedLinearArgs& a) {
  const int64_t n_groups = a.n_groups(), k = a.weight.dim(1), rows = a.weight.dim(0) / n_groups;
  Tensor weight = a.weight;
  weight.shape = {n_groups, rows, k};
  weight.strides_bytes[1] = a.weight.strides_bytes[0];
  weight.strides_bytes[0] = rows * weight.strides_bytes[1];
  weight.strides_bytes[2] = a.weight.strides_bytes[1];
  return {a.x.reshaped({a.x.dim(0), n_groups, k}), weight, a.out.reshaped({a.x.dim(0), n_groups, rows})};
}

}  // namespace

size_t grouped_linear_workspace(const GroupedLinearArgs& a) { return head_linear_workspace(as_heads(a)); }
void grouped_linear(const GroupedLinearArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  head_linear(as_heads(a), c, options);
}

size_t gated_ffn_workspace(const GatedFfnArgs& a) { return ffn_workspace(problem_of(a)); }
void gated_ffn(const GatedFfnArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  run_ffn(problem_of(a), c, options);
}

size_t moe_ffn_workspace(const MoeFfnArgs& a) { return ffn_workspace(problem_of(a)); }
void moe_ffn(const MoeFfnArgs& a, const MatmulContext& c, const MatmulOptions& options) {
  run_ffn(problem_of(a), c, options);
}

bool routes_are_few(const MoeFfnArgs& a) {
  return a.x.dim(0) > 1 && a.x.dim(0) <= kGemvTokens && a.expert_ids.shape.n_elements() <= kFewRoutes;
}

void route_and_group(const RouteExpertsArgs& a, const MoeFfnArgs& next, const MatmulContext& c) {
  const FfnProblem p = problem_of(next);
  Workspace workspace(c.workspace);
  launch_route_and_group(a, FfnMemory(p, workspace).groups, c.stream);
}

void decode_weights(const Tensor& weight, const Tensor& out, const MatmulContext& c) {
  FATHOM_CHECK(
      (out.dtype == DType::kF32 || out.dtype == DType::kBF16) && out.is_contiguous() && out.shape == weight.shape,
      out.describe() + " does not fit " + weight.describe());
  DecodeLaunch l;
  l.w = weight_rows(weight);
  FATHOM_CHECK(weight.shape.rank == 2 || l.w.matrix_bytes == l.w.row_bytes * l.w.n_rows, "matrices follow one another");
  l.n_rows = weight.n_rows();
  if (out.dtype == DType::kF32) {
    l.out_f32 = out.as<float>();
  } else {
    l.out_bf16 = out.as<uint16_t>();
  }
  l.grids = c.grids;
  l.stream = c.stream;
  if (l.n_rows > 0) launchers(weight.dtype).decode(l);
}

void embed_rows(const EmbedRowsArgs& a, const MatmulContext& c) {
  FATHOM_CHECK(a.out.is_contiguous(), "embeddings are packed");
  DecodeLaunch l;
  l.w = weight_rows(a.table);
  l.ids = a.ids.as<const int32_t>();
  l.copies = a.copies;
  l.n_rows = a.ids.dim(0) * a.copies;
  l.out_f32 = a.out.as<float>();
  l.grids = c.grids;
  l.stream = c.stream;
  if (l.n_rows > 0) launchers(a.table.dtype).decode(l);
}

}  // namespace fathom::cuda
