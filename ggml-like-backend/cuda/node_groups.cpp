#include "cuda/node_groups.h"

#include <algorithm>
#include <functional>

#include "cuda/matmul.h"

namespace fathom::cuda {
namespace {

bool overlap(const Tensor& a, const Tensor& b) {
  if (!a || !b) return false;
  const std::less<> before;
  return before(a.data, b.data + b.size_bytes()) && before(b.data, a.data + a.size_bytes());
}

bool same(const Tensor& a, const Tensor& b) { return a.data == b.data && a.shape == b.shape; }

/// Result of the nodes whose kernels can add to it, an empty tensor for others; `x` is what they read last.
Tensor summable(const Node& node, Tensor& x) {
  if (const auto* a = std::get_if<LinearArgs>(&node.args)) return x = a->x, a->out;
  if (const auto* a = std::get_if<GatedFfnArgs>(&node.args)) return x = a->x, a->out;
  if (const auto* a = std::get_if<MoeFfnArgs>(&node.args)) return x = a->x, a->out;
  return {};
}

}  // namespace

NodeGroup next_group(std::span<const Node> nodes, size_t first) {
  const Node& node = nodes[first];
  if (const auto* a = std::get_if<LinearArgs>(&node.args)) {
    size_t n = 1;
    for (; n < kMaxProducts && first + n < nodes.size(); ++n) {
      const auto* next = std::get_if<LinearArgs>(&nodes[first + n].args);
      if (next == nullptr || !same(next->x, a->x) || overlap(next->out, a->x)) break;
    }
    if (n > 1 && !overlap(a->out, a->x)) return {NodeGroup::kProductsOfOne, n, {}, {}};
  }
  if (first + 1 == nodes.size()) return {};
  const Node& next = nodes[first + 1];
  if (const auto* store = std::get_if<StoreLatentArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    if (rotate != nullptr && same(rotate->table, store->rope_table) && !overlap(rotate->out, store->kv_a) &&
        !overlap(rotate->out, store->rope_table)) {
      return {NodeGroup::kStoreAndRotate, 2, {}, {}};
    }
  }
  if (const auto* sum = std::get_if<AddArgs>(&next.args)) {
    Tensor x;
    const Tensor out = summable(node, x);
    const bool is_a = out && same(sum->a, out), is_b = out && same(sum->b, out);
    if (is_a == is_b) return {};
    const Tensor& other = is_a ? sum->b : sum->a;
    bool reads_sum = false;  // what the kernels still read while they write
    std::visit([&](auto args) { args.inputs([&](const Tensor& t) { reads_sum |= overlap(t, sum->out); }); }, node.args);
    if (!reads_sum && (same(other, sum->out) || !overlap(other, sum->out)))
      return {NodeGroup::kWithSum, 2, other, sum->out};
  }
  return {};
}

Tensor wanted_quantized(std::span<const Node> nodes, size_t first) {
  constexpr size_t kSoon = 8;  // router and shared projections lie between
  Tensor x;
  if (const auto* a = std::get_if<RmsNormArgs>(&nodes[first].args); a != nullptr && a->out.dim(1) % 32 == 0) x = a->out;
  if (const auto* a = std::get_if<LatentAttentionArgs>(&nodes[first].args); a != nullptr && a->value_dim() % 32 == 0)
    x = a->out;
  if (!x) return {};
  for (size_t i = first + 1; i < std::min(nodes.size(), first + 1 + kSoon); ++i) {
    const Node& node = nodes[i];
    if (const auto* a = std::get_if<LinearArgs>(&node.args);
        a != nullptr && same(a->x, x) && takes_quantized_rows(a->weight.dtype))
      return x;
    if (const auto* a = std::get_if<GatedFfnArgs>(&node.args);
        a != nullptr && same(a->x, x) && takes_quantized_rows(a->weights.gate.dtype))
      return x;
    if (const auto* a = std::get_if<MoeFfnArgs>(&node.args);
        a != nullptr && same(a->x, x) && takes_quantized_rows(a->experts.gate.dtype))
      return x;
    if (writes_over(node, x)) return {};
  }
  return {};
}

bool writes_over(const Node& node, const Tensor& t) {
  bool found = false;
  std::visit([&](auto args) { args.outputs([&](const Tensor& out) { found |= overlap(out, t); }); }, node.args);
  return found;
}

}  // namespace fathom::cuda
