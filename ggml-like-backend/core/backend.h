// What a device must be able to do for the graph: own memory and execute nodes.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/buffer.h"
#include "core/node.h"

namespace fathom {

/// One device. Not thread-safe: one step at a time.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  ///< "cpu"
  virtual std::string describe() const = 0;   ///< what really runs, for people: "cpu avx512, 2 threads"
  /// Memory that this device's nodes can read and write. Throws Error{kNoMemory}.
  virtual std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) = 0;
  /// Throws Error{kModel} naming operation and type if a node cannot run here. Called once, at load.
  virtual void check_supported(const Node& node) const = 0;
  /// Runs the nodes in order; every tensor has its address. Returns when the results are visible to the host.
  virtual void execute(std::span<const Node> nodes) = 0;
};

}  // namespace fathom
