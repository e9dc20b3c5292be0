// Matrix products: weight rows are decoded to f32 one at a time and multiplied with every token.
#include <algorithm>
#include <cmath>

#include "core/quant/dequantize.h"
#include "cpu/expert_groups.h"
#include "cpu/reference/reference.h"

namespace fathom::cpu::reference {
namespace {

float dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(sum);
}

float silu(float x) { return x / (1.0F + std::exp(-x)); }

size_t float_bytes(int64_t n) { return static_cast<size_t>(n) * sizeof(float); }

/// hidden[r, f] = silu(min(gate_f . x_r, limit)) * clamp(up_f . x_r, -limit, limit) for rows f in [begin, end); x(r)
/// and hidden(r) give the rows.
template <typename X, typename Out>
void gate_and_up(const Tensor& gate, const Tensor& up, int64_t begin, int64_t end, int64_t n_rows, float limit,
                 float* scratch, X&& x, Out&& hidden) {
  const int64_t n = gate.dim(1);
  for (int64_t f = begin; f < end; ++f) {
    dequantize_row(gate.dtype, gate.row(f), scratch, n);
    dequantize_row(up.dtype, up.row(f), scratch + n, n);
    for (int64_t r = 0; r < n_rows; ++r) {
      const float g = dot(scratch, x(r), n), u = dot(scratch + n, x(r), n);
      hidden(r)[f] = silu(std::min(g, limit)) * std::clamp(u, -limit, limit);
    }
  }
}

/// out(r)[d] = down_d . hidden(r) for rows d in [begin, end).
template <typename X, typename Out>
void multiply(const Tensor& weight, int64_t begin, int64_t end, int64_t n_rows, float* scratch, X&& x, Out&& out) {
  for (int64_t o = begin; o < end; ++o) {
    dequantize_row(weight.dtype, weight.row(o), scratch, weight.dim(1));
    for (int64_t r = 0; r < n_rows; ++r) out(r)[o] = dot(scratch, x(r), weight.dim(1));
  }
}

}  // namespace

Workspace linear_workspace(const LinearArgs& a, int) { return {0, float_bytes(a.weight.dim(1))}; }

void linear(const LinearArgs& a, OpContext& c) {
  c.worker.share(a.weight.dim(0), 16, [&](int64_t begin, int64_t end) {
    multiply(
        a.weight, begin, end, a.x.dim(0), reinterpret_cast<float*>(c.own),
        [&](int64_t t) { return a.x.row_as<float>(t); }, [&](int64_t t) { return a.out.row_as<float>(t); });
  });
}

Workspace grouped_linear_workspace(const GroupedLinearArgs& a, int) { return {0, float_bytes(a.weight.dim(1))}; }

void grouped_linear(const GroupedLinearArgs& a, OpContext& c) {
  const int64_t width = a.weight.dim(1), rows = a.weight.dim(0) / a.n_groups();
  c.worker.share(a.n_groups(), 1, [&](int64_t group, int64_t) {
    multiply(
        a.weight, group * rows, (group + 1) * rows, a.x.dim(0), reinterpret_cast<float*>(c.own),
        [&](int64_t t) { return a.x.row_as<float>(t) + group * width; },
        [&](int64_t t) { return a.out.row_as<float>(t); });
  });
}

Workspace gated_ffn_workspace(const GatedFfnArgs& a, int) {
  const int64_t width = a.weights.gate.dim(0);
  return {float_bytes(a.x.dim(0) * width), float_bytes(std::max(2 * a.x.dim(1), width))};
}

void gated_ffn(const GatedFfnArgs& a, OpContext& c) {
  const int64_t n_tokens = a.x.dim(0), width = a.weights.gate.dim(0);
  float* scratch = reinterpret_cast<float*>(c.own);
  auto hidden = [&](int64_t t) { return reinterpret_cast<float*>(c.shared) + t * width; };
  c.worker.share(width, 16, [&](int64_t begin, int64_t end) {
    gate_and_up(
        a.weights.gate, a.weights.up, begin, end, n_tokens, a.clamp, scratch,
        [&](int64_t t) { return a.x.row_as<float>(t); }, hidden);
  });
  c.worker.barrier();
  c.worker.share(a.weights.down.dim(0), 16, [&](int64_t begin, int64_t end) {
    multiply(a.weights.down, begin, end, n_tokens, scratch, hidden, [&](int64_t t) { return a.out.row_as<float>(t); });
  });
}

namespace {

/// Shared workspace of moe_ffn: the groups, then hidden [T * K + T, widest], then outputs [T * K + T, D]; the last T
/// rows are the shared experts'.
struct MoeLayout {
  int64_t n_tokens, n_used, n_experts, hidden_size, width, n_rows;
  size_t groups_bytes, total_bytes;

  explicit MoeLayout(const MoeFfnArgs& a)
      : n_tokens(a.x.dim(0)),
        n_used(a.expert_ids.dim(1)),
        n_experts(a.experts.gate.dim(0)),
        hidden_size(a.x.dim(1)),
        width(std::max(a.experts.gate.dim(1), a.shared.gate ? a.shared.gate.dim(0) : 0)),
        n_rows(n_tokens * (n_used + 1)) {
    groups_bytes = (ExpertGroups::bytes(n_experts, n_tokens * n_used) + 63) / 64 * 64;
    total_bytes = groups_bytes + float_bytes(n_rows * (width + hidden_size));
  }
};

}  // namespace

Workspace moe_ffn_workspace(const MoeFfnArgs& a, int) {
  const MoeLayout l(a);
  return {l.total_bytes, float_bytes(std::max(2 * l.hidden_size, l.width))};
}

void moe_ffn(const MoeFfnArgs& a, OpContext& c) {
  const MoeLayout l(a);
  const ExpertGroups groups = ExpertGroups::at(c.shared, l.n_experts, l.n_tokens * l.n_used);
  float* hidden = reinterpret_cast<float*>(c.shared + l.groups_bytes);
  float* outputs = hidden + l.n_rows * l.width;
  float* scratch = reinterpret_cast<float*>(c.own);
  if (c.worker.index() == 0) groups.fill(a.expert_ids.as<int32_t>(), l.n_tokens * l.n_used, l.n_experts);
  c.worker.barrier();

  // Task e < E is routed expert e; task E the shared experts, whose routes are the rows after all others.
  auto n_routes = [&](int64_t e) { return e < l.n_experts ? groups.first[e + 1] - groups.first[e] : l.n_tokens; };
  auto route = [&](int64_t e, int64_t i) {
    return e < l.n_experts ? groups.order[groups.first[e] + i] : l.n_tokens * l.n_used + i;
  };
  auto token = [&](int64_t e, int64_t i) { return e < l.n_experts ? route(e, i) / l.n_used : i; };
  const int64_t n_tasks = l.n_experts + (a.shared.gate ? 1 : 0);
  c.worker.share(n_tasks, 1, [&](int64_t e, int64_t) {
    const Tensor gate = e < l.n_experts ? a.experts.gate.slab(e) : a.shared.gate;
    const Tensor up = e < l.n_experts ? a.experts.up.slab(e) : a.shared.up;
    gate_and_up(
        gate, up, 0, gate.dim(0), n_routes(e), e < l.n_experts ? a.clamp : a.shared_clamp, scratch,
        [&](int64_t i) { return a.x.row_as<float>(token(e, i)); },
        [&](int64_t i) { return hidden + route(e, i) * l.width; });
  });
  c.worker.barrier();
  c.worker.share(n_tasks, 1, [&](int64_t e, int64_t) {
    const Tensor down = e < l.n_experts ? a.experts.down.slab(e) : a.shared.down;
    multiply(
        down, 0, down.dim(0), n_routes(e), scratch, [&](int64_t i) { return hidden + route(e, i) * l.width; },
        [&](int64_t i) { return outputs + route(e, i) * l.hidden_size; });
  });
  c.worker.barrier();
  c.worker.share(l.n_tokens, 1, [&](int64_t t, int64_t) {
    float* out = a.out.row_as<float>(t);
    std::fill_n(out, l.hidden_size, 0.0F);
    for (int64_t k = 0; k < l.n_used; ++k) {
      const float weight = a.expert_weights.row_as<float>(t)[k];
      const float* y = outputs + (t * l.n_used + k) * l.hidden_size;
      for (int64_t d = 0; d < l.hidden_size; ++d) out[d] += weight * y[d];
    }
    if (a.shared.gate) {
      const float* y = outputs + (l.n_tokens * l.n_used + t) * l.hidden_size;
      for (int64_t d = 0; d < l.hidden_size; ++d) out[d] += y[d];
    }
  });
}

}  // namespace fathom::cpu::reference
