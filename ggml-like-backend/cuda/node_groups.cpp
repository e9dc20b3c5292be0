#include "cuda/node_groups.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "cuda/matmul.h"
#include "cuda/ops.h"

namespace fathom::cuda {
namespace {

bool overlap(const Tensor& a, const Tensor& b) {
  if (!a || !b) return false;
  const std::less<> before;
  return before(a.data, b.data + b.size_bytes()) && before(b.data, a.data + a.size_bytes());
}

bool reads(const Node& node, const Tensor& memory) {
  bool found = false;
  std::visit([&](auto args) { args.inputs([&](const Tensor& t) { found |= overlap(t, memory); }); }, node.args);
  return found;
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

bool is_norm_of_streams(const CollapseStreamsArgs& collapse, const Node& node) {
  const auto* norm = std::get_if<RmsNormArgs>(&node.args);
  return norm != nullptr && norm->weight && same(norm->x, collapse.out) && !overlap(norm->out, collapse.out) &&
         !overlap(norm->out, collapse.streams) && !overlap(norm->out, collapse.products);
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
      const auto* collapse = std::get_if<CollapseStreamsArgs>(&next.args);
      const bool has_norm = first + group.n_nodes + 1 < nodes.size();
      if (collapse != nullptr && has_norm && group.n_products == 1 && same(collapse->products, product.out) &&
          same(collapse->streams, product.x) && product.out.dim(0) == 1 &&
          !takes_quantized_rows(product.weight.dtype) &&
          is_norm_of_streams(*collapse, nodes[first + group.n_nodes + 1]) && !overlap(collapse->out, product.x) &&
          !overlap(collapse->out, product.out) && !overlap(collapse->mixing, product.x) &&
          !overlap(collapse->mixing, product.out))
        group.last = NodeGroup::kCollapse;
      group.finished = i;
    }
    if (group.last != NodeGroup::kNothing) ++group.n_nodes;
    if (group.last == NodeGroup::kCollapse) ++group.n_nodes;
  }
  return group.n_nodes > 1 ? group : NodeGroup{};
}

/// Nodes that make one row or set of heads, of those that may stand side by side, and what they read and write. Every
/// row has a cache of its own.
struct RowWork {
  size_t n_nodes = 0;  ///< 0: none begins here
  int* n_of_kind = nullptr;
  int most = 1;
  std::vector<Tensor> reads{}, writes{};

  bool disturbs(const RowWork& other) const {
    return std::any_of(writes.begin(), writes.end(), [&](const Tensor& w) {
      const auto lies_over = [&](const Tensor& t) { return overlap(w, t); };
      return std::any_of(other.reads.begin(), other.reads.end(), lies_over) ||
             std::any_of(other.writes.begin(), other.writes.end(), lies_over);
    });
  }
};

/// How many of each kind stand side by side.
struct KindCounts {
  int latents = 0, compressed = 0, keys = 0, heads = 0;
};

template <typename T> const T* node_at(std::span<const Node> nodes, size_t i) {
  return i < nodes.size() ? std::get_if<T>(&nodes[i].args) : nullptr;
}

RowWork row_work(std::span<const Node> nodes, size_t first, KindCounts& counts) {
  const auto reads = [](auto args) {
    std::vector<Tensor> all;
    args.inputs([&](const Tensor& t) { all.push_back(t); });
    return all;
  };
  if (const auto* a = node_at<StoreLatentArgs>(nodes, first)) return {1, &counts.latents, 1, reads(*a), {}};
  if (const auto* a = node_at<CompressRowsArgs>(nodes, first))
    return {1, &counts.compressed, kMostSideBySide, reads(*a), {}};
  if (const auto* a = node_at<RotateHeadsArgs>(nodes, first))
    return {1, &counts.heads, kMostSideBySide, reads(*a), {a->out}};
  const auto* rotate = node_at<RotateHeadsArgs>(nodes, first + 1);
  if (rotate == nullptr) return {};
  if (const auto* norm = node_at<RmsNormArgs>(nodes, first);
      norm != nullptr && !norm->weight && rotate->x.data == norm->out.data && rotate->x.dim(2) == norm->out.dim(1) &&
      !overlap(rotate->out, norm->x))
    return {2, &counts.heads, kMostSideBySide, {norm->x, rotate->table}, {rotate->out}};
  const auto* norm = node_at<LayerNormArgs>(nodes, first);
  const auto* store = node_at<StoreRowsArgs>(nodes, first + 2);
  if (norm != nullptr && store != nullptr && rotate->x.data == norm->out.data && rotate->x.dim(1) == 1 &&
      rotate->x.dim(2) == norm->out.dim(1) && store->x.data == rotate->out.data && store->x.dim(1) == norm->out.dim(1))
    return {3, &counts.keys, 1, {norm->x, norm->weight, norm->bias, rotate->table, store->slots}, {}};
  return {};
}

NodeGroup side_by_side(std::span<const Node> nodes, size_t first) {
  KindCounts counts;
  std::vector<RowWork> all;
  NodeGroup group{.kind = NodeGroup::kSideBySide, .n_nodes = 0};
  for (;;) {
    RowWork next = row_work(nodes, first + group.n_nodes, counts);
    if (next.n_nodes == 0 || ++*next.n_of_kind > next.most) break;
    if (group.n_nodes + next.n_nodes > kMostGrouped + 1) break;
    if (std::any_of(all.begin(), all.end(),
                    [&](const RowWork& other) { return next.disturbs(other) || other.disturbs(next); }))
      break;
    group.n_nodes += next.n_nodes;
    all.push_back(std::move(next));
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
    }
  }
  if (const NodeGroup group = side_by_side(nodes, first); group.kind != NodeGroup::kSingle) return group;
  if (const auto* collapse = std::get_if<CollapseStreamsArgs>(&node.args);
      collapse != nullptr && is_norm_of_streams(*collapse, next))
    return {.kind = NodeGroup::kCollapseAndNorm, .n_nodes = 2};
  if (const auto* attend = std::get_if<CompressedAttentionArgs>(&node.args)) {
    const auto* rotate = std::get_if<RotateHeadsArgs>(&next.args);
    if (rotate != nullptr && rotate->x.data == attend->out.data && rotate->x.dim(2) == attend->q.dim(2) &&
        rotate->x.dim(0) == attend->q.dim(0))
      return {.kind = NodeGroup::kAttendAndRotate, .n_nodes = 2};
  }
  if (const auto* expand = std::get_if<ExpandStreamsArgs>(&next.args)) {
    Tensor x;
    const bool takes = std::holds_alternative<MoeFfnArgs>(node.args) ||
                       (std::holds_alternative<LinearArgs>(node.args) && expand->y.dim(0) == 1);
    if (takes && same(summable(node, x), expand->y) && !reads(node, expand->out) &&
        !overlap(expand->out, expand->mixing) &&
        (same(expand->out, expand->streams) || !overlap(expand->out, expand->streams)))
      return {.kind = NodeGroup::kWithExpansion, .n_nodes = 2};
  }
  if (const auto* sum = std::get_if<AddArgs>(&next.args)) {
    Tensor x;
    const Tensor out = summable(node, x);
    const bool is_a = out && same(sum->a, out), is_b = out && same(sum->b, out);
    if (is_a == is_b) return {};
    const Tensor& other = is_a ? sum->b : sum->a;
    // Not over what the kernels still read while they write.
    if (!reads(node, sum->out) && (same(other, sum->out) || !overlap(other, sum->out))) {
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
