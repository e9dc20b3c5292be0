// A list of nodes in execution order and a plan that lets their values share memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "core/node.h"

namespace fathom {

/// Built by ops/*.h, one step at a time: build, then run() on an Executor. Until then the `data` of a graph value is
/// its byte offset from the value's start, so that views of values (slab, slice, reshaped) work before there is an
/// address.
class Graph {
 public:
  /// A contiguous value that a node to be added will write.
  Tensor new_value(DType dtype, Shape shape);
  void add(NodeArgs args) { nodes_.push_back(Node{std::move(args)}); }
  /// The value is read after the run: its memory is not given to another value.
  void keep(const Tensor& value);

  /// Gives every value an offset such that values alive at the same node do not overlap; returns the bytes needed.
  /// A value lives from the first node that writes it to the last that reads it, and n_more nodes longer.
  size_t plan(int n_more = 0);
  /// Turns offsets into addresses in all nodes. Call once, after plan(). arena: at least plan() bytes, 64-byte aligned.
  void bind(std::byte* arena);
  /// The tensor with its address; after bind().
  Tensor resolve(const Tensor& value) const;

  const std::vector<Node>& nodes() const { return nodes_; }

 private:
  struct Value {
    size_t size_bytes;
    int first_node = -1;
    int last_node = -1;
    bool kept = false;
    size_t offset = 0;
  };
  std::vector<Node> nodes_;
  std::vector<Value> values_;
  std::byte* arena_ = nullptr;
};

/// Called before a node runs, every tensor with its address. True: the hook has computed the node's outputs itself.
using NodeHook = std::function<bool(const Node&)>;

/// Runs graphs on one backend, in one arena that grows to the largest plan seen.
class Executor {
 public:
  explicit Executor(Backend& backend) : backend_(backend) {}
  /// Plans, binds and executes. Results stay readable through graph.resolve until the next run.
  void run(Graph& graph);
  /// The same, asking `go_on` before every few nodes but the first (Backend::nodes_at_once). False if the answer was
  /// no: then nothing can be read. `go_on` may use the backend through another executor.
  bool run_while(Graph& graph, const std::function<bool()>& go_on);
  /// The same node by node, with a look at each.
  void run(Graph& graph, const NodeHook& hook);
  /// The first half of run(): afterwards the graph can be replayed until arena_generation() changes.
  void prepare(Graph& graph);
  /// Runs a prepared graph; graphs of equal key have equal nodes (Backend::replay).
  void replay(uint64_t key, const Graph& graph) { backend_.replay(key, graph.nodes()); }
  /// Lets the arena have at least so many bytes.
  void reserve(size_t size_bytes);
  size_t arena_bytes() const { return arena_ ? arena_->size_bytes() : 0; }
  /// Changes whenever the arena moves: graphs prepared before have lost their addresses.
  uint64_t arena_generation() const { return generation_; }

 private:
  Backend& backend_;
  std::shared_ptr<Buffer> arena_;
  uint64_t generation_ = 0;
};

}  // namespace fathom
