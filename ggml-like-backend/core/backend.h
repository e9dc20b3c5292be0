// What a device must be able to do for the graph: own memory and execute nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/buffer.h"
#include "core/error.h"
#include "core/node.h"
#include "core/sparse_memory.h"

namespace fathom {

/// Routes to experts that are the host's, and how many of them went to copies on the device.
struct ExpertHits {
  uint64_t hits = 0, routes = 0;
};

/// One device. Not thread-safe: one step at a time. Everything asked of it (copies, steps) happens in the order of the
/// calls.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  ///< "cpu"
  virtual std::string describe() const = 0;   ///< what really runs, for people: "cpu avx512, 2 threads"
  /// Memory that this device's nodes can read and write, aligned for any of them; its content is not defined unless the
  /// host shares it (then zero). Throws Error{kNoMemory} with the bytes needed and free.
  virtual std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) = 0;
  /// The same in `n` units that take memory one by one. Throws Error{kNoMemory} if there are not as many addresses.
  virtual std::unique_ptr<SparseRange> reserve_units(size_t n, size_t unit_bytes, std::string_view what) {
    return std::make_unique<SparseMemory>(n, unit_bytes, what);
  }
  /// Throws Error{kModel} naming operation and type if a node cannot run here. Called once, at load.
  virtual void check_supported(const Node& node) const = 0;
  /// Runs the nodes in order; every tensor has its address. The results can be read afterwards: where the host shares
  /// the device's memory at their addresses, else through download().
  virtual void execute(std::span<const Node> nodes) = 0;

  /// The same for nodes that are equal, addresses included, whenever `key` is: a device may record them once and play
  /// them back. forget_replays() ends the promise for all keys.
  virtual void replay(uint64_t key, std::span<const Node> nodes) {
    static_cast<void>(key);
    execute(nodes);
  }
  virtual void forget_replays() {}
  /// Takes now what executing such nodes takes besides the buffers in them, so that it is refused at load or never.
  virtual void reserve(std::span<const Node> nodes) { static_cast<void>(nodes); }

  /// Nodes to execute between two looks at whether to go on: few milliseconds' worth.
  virtual size_t nodes_at_once() const { return 1; }

  /// Whether the host reads and writes memory of allocate() at its addresses. If not, the copies below are the only
  /// way.
  virtual bool shares_host_memory() const { return true; }
  /// Memory the device could still give; nothing: the host's memory is the limit.
  virtual std::optional<uint64_t> free_bytes() const { return std::nullopt; }
  /// Of the device's memory, held by this backend and the buffers it gave.
  virtual uint64_t allocated_bytes() const { return 0; }
  /// Returns when everything asked for so far is done.
  virtual void finish() {}
  /// Host memory that download() fills fastest.
  virtual std::shared_ptr<Buffer> allocate_staging(size_t size_bytes, std::string_view what) {
    return allocate_heap(size_bytes, what);
  }
  /// Host to device. The source may change as soon as this returns.
  virtual void upload(std::byte* to, const std::byte* from_host, size_t size_bytes) {
    std::memcpy(to, from_host, size_bytes);
  }
  /// Rows of a matrix that nodes multiply with or look rows up in, packed as the file has them, to the device, where
  /// they are weight_row_bytes apart, begin at 256-byte aligned `to` and may be stored in another order.
  virtual void upload_weights(std::byte* to, const std::byte* from_host, DType dtype, int64_t n_rows,
                              int64_t n_columns) {
    upload(to, from_host, static_cast<size_t>(n_rows) * row_bytes(dtype, n_columns));
  }
  virtual size_t weight_row_bytes(DType dtype, int64_t n_columns) const { return row_bytes(dtype, n_columns); }
  /// Whether the two functions below work here.
  virtual bool can_stream_experts() const { return false; }
  /// Takes now what execute_streaming() of such a mixture takes. Throws Error{kNoMemory}.
  virtual void reserve_streaming(const MoeFfnArgs& mixture) { static_cast<void>(mixture); }
  /// Runs a mixture whose routed experts' matrices lie in host memory as a file holds them, for many tokens: all of
  /// them are brought to the device, a few at a time, and need not stay when this returns. The result has the bits of
  /// experts that lie on the device.
  virtual void execute_streaming(const MoeFfnArgs& mixture) {
    static_cast<void>(mixture);
    FATHOM_CHECK(false, "a backend that cannot stream experts");
  }
  /// Since the backend was made, where hot experts are cached on a device.
  virtual ExpertHits expert_hits() const { return {}; }
  /// Nodes that may run as one with a node before them: what a node reads must not be overwritten by so many nodes
  /// after it.
  virtual int fused_nodes() const { return 0; }
  /// Device to host: the bytes are there when this returns.
  virtual void download(std::byte* to_host, const std::byte* from, size_t size_bytes) {
    std::memcpy(to_host, from, size_bytes);
  }
  /// Device to device; the two do not overlap.
  virtual void copy(std::byte* to, const std::byte* from, size_t size_bytes) { std::memcpy(to, from, size_bytes); }
};

}  // namespace fathom
