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

namespace {

bool is_norm_of(const Node& node, const Tensor& result) {
  const auto* a = std::get_if<RmsNormArgs>(&node.args);
  return a != nullptr && a->weight && same(a->x, result) && result.dim(0) == 1 && !overlap(a->out, result);
}

/// Products of one x, and what their last block may do.
NodeGroup products_of_one(std::span<const Node> nodes, size_t first) {
  const auto* a = std::get_if<LinearArgs>(&nodes[first].args);
  if (a == nullptr || overlap(a->out, a->x)) return {};
  NodeGroup group{.kind = NodeGroup::kProductsOfOne, .n_products = 1};
  for (; group.n_products < kMaxProducts && first + group.n_products < nodes.size(); ++group.n_products) {
    const auto* next = std::get_if<LinearArgs>(&nodes[first + group.n_products].args);
    if (next == nullptr || !same(next->x, a->x) || overlap(next->out, a->x)) break;
  }
  group.n_nodes = group.n_products;
  if (first + group.n_nodes < nodes.size()) {
    const Node& next = nodes[first + group.n_nodes];
    for (size_t i = 0; i < group.n_products && group.last == NodeGroup::kNothing; ++i) {
      const auto& product = std::get<LinearArgs>(nodes[first + i].args);
      if (is_norm_of(next, product.out)) {
        const Tensor& out = std::get<RmsNormArgs>(next.args).out;
        bool is_free = !overlap(out, a->x);  // other products may still read x, and are not yet written
        for (size_t k = 0; k < group.n_products; ++k)
          is_free &= !overlap(out, std::get<LinearArgs>(nodes[first + k].args).out);
        if (is_free) group.last = NodeGroup::kNorm;
      }
      const auto* route = std::get_if<RouteExpertsArgs>(&next.args);
      if (route != nullptr && group.n_products == 1 && same(route->logits, product.out) && product.out.dim(0) == 1 &&
          !route->table && !takes_quantized_rows(product.weight.dtype) && product.out.dim(1) <= kMostLastExperts)
        group.last = NodeGroup::kRoute;
      group.finished = i;
    }
    if (group.last != NodeGroup::kNothing) ++group.n_nodes;
  }
  return group.n_nodes > 1 ? group : NodeGroup{};
}

}  // namespace

NodeGroup next_group(std::span<const Node> nodes, size_t first) {
  const Node& node = nodes[first];
  if (const NodeGroup group = products_of_one(nodes, first); group.kind != NodeGroup::kSingle) return group;
  if (first + 1 == nodes.size()) return {};
  const Node& next = nodes[first + 1];
  if (const auto* store = std::get_if<StoreLatentArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    if (rotate != nullptr && same(rotate->table, store->rope_table) && !overlap(rotate->out, store->kv_a) &&
        !overlap(rotate->out, store->rope_table)) {
      const auto* attend =
          first + 2 < nodes.size() ? std::get_if<LatentAttentionArgs>(&nodes[first + 2].args) : nullptr;
      if (attend != nullptr && same(attend->q, rotate->out) && !attend->chosen && !overlap(rotate->out, rotate->x) &&
          rotate->first_dim == attend->nope_dim() && !overlap(attend->out, rotate->x) &&
          !overlap(attend->out, store->kv_a))
        return {.kind = NodeGroup::kStoreRotateAndAttend, .n_nodes = 3};
      return {.kind = NodeGroup::kStoreAndRotate, .n_nodes = 2};
    }
  }
  if (const auto* norm = std::get_if<LayerNormArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    const auto* store = first + 2 < nodes.size() ? std::get_if<StoreRowsArgs>(&nodes[first + 2].args) : nullptr;
    if (rotate != nullptr && store != nullptr && rotate->x.data == norm->out.data && rotate->x.dim(1) == 1 &&
        rotate->x.dim(2) == norm->out.dim(1) && store->x.data == rotate->out.data &&
        store->x.dim(1) == norm->out.dim(1))
      return {.kind = NodeGroup::kStoreIndexKey, .n_nodes = 3};
  }
  if (const auto* rotate = std::get_if<RotateHeadsArgs>(&node.args)) {
    const auto* index = std::get_if<IndexRowsArgs>(&next.args);
    if (index != nullptr && same(index->q, rotate->out) && !overlap(index->chosen, rotate->x) &&
        !overlap(index->chosen, rotate->table))
      return {.kind = NodeGroup::kRotateAndIndex, .n_nodes = 2};
  }
  if (const auto* collapse = std::get_if<CollapseStreamsArgs>(&node.args)) {
    const auto* norm = std::get_if<RmsNormArgs>(&next.args);
    if (norm != nullptr && norm->weight && same(norm->x, collapse->out) && !overlap(norm->out, collapse->out) &&
        !overlap(norm->out, collapse->streams) && !overlap(norm->out, collapse->products))
      return {.kind = NodeGroup::kCollapseAndNorm, .n_nodes = 2};
  }
  if (const auto* norm = std::get_if<RmsNormArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    if (rotate != nullptr && !norm->weight && rotate->x.data == norm->out.data &&
        rotate->x.dim(2) == norm->out.dim(1) && !overlap(rotate->out, norm->x))
      return {.kind = NodeGroup::kNormAndRotate, .n_nodes = 2};
  }
  if (const auto* attend = std::get_if<CompressedAttentionArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    if (rotate != nullptr && rotate->x.data == attend->out.data && rotate->x.dim(2) == attend->q.dim(2) &&
        rotate->x.dim(0) == attend->q.dim(0))
      return {.kind = NodeGroup::kAttendAndRotate, .n_nodes = 2};
  }
  if (const auto* sum = std::get_if<AddArgs>(&next.args)) {
    Tensor x;
    const Tensor out = summable(node, x);
    const bool is_a = out && same(sum->a, out), is_b = out && same(sum->b, out);
    if (is_a == is_b) return {};
    const Tensor& other = is_a ? sum->b : sum->a;
    bool reads_sum = false;  // what the kernels still read while they write
    std::visit([&](auto args) { args.inputs([&](const Tensor& t) { reads_sum |= overlap(t, sum->out); }); }, node.args);
    if (!reads_sum && (same(other, sum->out) || !overlap(other, sum->out))) {
      NodeGroup group{.kind = NodeGroup::kWithSum, .n_nodes = 2, .add = other, .sum = sum->out};
      if (first + 2 < nodes.size() && is_norm_of(nodes[first + 2], sum->out)) {
        group.last = NodeGroup::kNorm;
        ++group.n_nodes;
      }
      return group;
    }
  }
  return {};
}

Tensor wanted_quantized(std::span<const Node> nodes, size_t first) {
  constexpr size_t kSoon = 8;  // router and shared projections lie between
  Tensor x;
  if (const auto* a = std::get_if<RmsNormArgs>(&nodes[first].args); a != nullptr && a->out.dim(1) % 32 == 0) x = a->out;
  if (const auto* a = std::get_if<LatentAttentionArgs>(&nodes[first].args); a != nullptr && a->value_dim() % 32 == 0)
    x = a->out;
  if (const auto* a = std::get_if<RotateHeadsArgs>(&nodes[first].args);
      a != nullptr && a->x.dim(2) % 32 == 0 && first > 0 &&
      next_group(nodes, first - 1).kind == NodeGroup::kAttendAndRotate)
    x = a->out.reshaped({a->out.dim(0), a->out.dim(1) * a->out.dim(2)});
  if (!x) return {};
  for (size_t i = first + 1; i < std::min(nodes.size(), first + 1 + kSoon); ++i) {
    const Node& node = nodes[i];
    if (const auto* a = std::get_if<LinearArgs>(&node.args);
        a != nullptr && same(a->x, x) && takes_quantized_rows(a->weight.dtype))
      return x;
    if (const auto* a = std::get_if<GroupedLinearArgs>(&node.args);
        a != nullptr && same(a->x, x) && a->weight.dim(1) % 32 == 0 && takes_quantized_rows(a->weight.dtype))
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
