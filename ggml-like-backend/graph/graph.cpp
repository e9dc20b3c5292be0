#include "graph/graph.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>

#include "core/error.h"

namespace fathom {
namespace {

constexpr size_t kAlign = 64;  // cache line, and the widest vector

size_t align_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Tensor Graph::new_value(DType dtype, Shape shape) {
  Tensor t(dtype, shape, nullptr);
  t.value_id = static_cast<int32_t>(values_.size());
  values_.push_back(Value{align_up(t.size_bytes())});
  return t;
}

void Graph::keep(const Tensor& value) {
  FATHOM_CHECK(value.value_id >= 0, "only a graph value can be kept");
  values_[static_cast<size_t>(value.value_id)].kept = true;
}

size_t Graph::plan(int n_more) {
  for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
    auto touch = [&](const Tensor& t) {
      if (t.value_id < 0) return;
      Value& v = values_[static_cast<size_t>(t.value_id)];
      if (v.first_node < 0) v.first_node = i;
      v.last_node = i + n_more;
    };
    std::visit([&](auto& args) { args.inputs(touch), args.outputs(touch); }, nodes_[static_cast<size_t>(i)].args);
  }
  // Largest first, each at the lowest offset free during its life: near optimal for chains of equal-sized activations.
  std::vector<size_t> order(values_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return values_[a].size_bytes > values_[b].size_bytes; });
  std::vector<size_t> placed;
  size_t total = 0;
  for (const size_t id : order) {
    Value& v = values_[id];
    if (v.first_node < 0) continue;
    if (v.kept) v.last_node = static_cast<int>(nodes_.size());
    std::vector<std::pair<size_t, size_t>> taken;  // [begin, end) of values alive at the same time
    for (const size_t other : placed) {
      const Value& o = values_[other];
      if (o.first_node <= v.last_node && v.first_node <= o.last_node)
        taken.emplace_back(o.offset, o.offset + o.size_bytes);
    }
    std::sort(taken.begin(), taken.end());
    size_t at = 0;
    for (const auto& [begin, end] : taken) {
      if (at + v.size_bytes <= begin) break;
      at = std::max(at, end);
    }
    v.offset = at;
    total = std::max(total, at + v.size_bytes);
    placed.push_back(id);
  }
  return total;
}

void Graph::bind(std::byte* arena) {
  FATHOM_CHECK(arena_ == nullptr, "a graph is bound once");
  arena_ = arena;
  for (Node& node : nodes_) {
    auto place = [&](Tensor& t) { t = resolve(t); };
    std::visit([&](auto& args) { args.inputs(place), args.outputs(place); }, node.args);
  }
}

Tensor Graph::resolve(const Tensor& value) const {
  if (value.value_id < 0) return value;
  Tensor t = value;
  t.data = arena_ + values_[static_cast<size_t>(value.value_id)].offset + reinterpret_cast<uintptr_t>(value.data);
  t.value_id = Tensor::kLeaf;
  return t;
}

void Executor::reserve(size_t size_bytes) {
  if (arena_ && arena_->size_bytes() >= size_bytes) return;
  arena_.reset();
  arena_ = backend_.allocate(size_bytes, "activations");
  ++generation_;
}

void Executor::prepare(Graph& graph) {
  reserve(graph.plan(backend_.fused_nodes()));
  graph.bind(arena_->data());
}

void Executor::run(Graph& graph) {
  prepare(graph);
  backend_.execute(graph.nodes());
}

bool Executor::run_while(Graph& graph, const std::function<bool()>& go_on) {
  prepare(graph);
  const std::span<const Node> nodes = graph.nodes();
  const size_t each = backend_.nodes_at_once();
  for (size_t i = 0; i < nodes.size(); i += each) {
    if (i > 0) {
      backend_.finish();  // or the question would come long before the work is done
      if (!go_on()) return false;
    }
    backend_.execute(nodes.subspan(i, std::min(each, nodes.size() - i)));
  }
  return true;
}

void Executor::run(Graph& graph, const NodeHook& hook) {
  prepare(graph);
  for (const Node& node : graph.nodes()) {
    if (!hook(node)) backend_.execute({&node, 1});
  }
}

}  // namespace fathom
