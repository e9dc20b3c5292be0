// Which neighbouring nodes run together. Found again for each step; plain host code.
#pragma once

#include <cstddef>
#include <span>

#include "core/node.h"

namespace fathom::cuda {

/// Nodes of a group after its first.
constexpr int kMostGrouped = 8;

struct NodeGroup {
  enum Kind {
    kSingle,
    kProductsOfOne,         ///< n_products linear nodes with the same x
    kWithSum,               ///< linear, gated_ffn or moe_ffn, then the add of its result: written to `sum`, on top of
                            ///< `add`
    kStoreRotateAndAttend,  ///< store_latent, rotate_heads by the same table, latent_attention of the rotated heads
    kWithExpansion,         ///< linear of one token or moe_ffn, then expand_streams of its result
    kSideBySide,            ///< what side_by_side() of ops.h takes
    kCollapseAndNorm,       ///< collapse_streams, then rms_norm of its result
    kAttendAndRotate,       ///< compressed_attention, then rotate_heads of its result
  } kind = kSingle;
  size_t n_nodes = 1;
  Tensor add{}, sum{};
  size_t n_products = 0;
  /// In steps of one token the last nodes may be what the last block of a product does with its result, kWithSum's or
  /// that of product `finished`: its norm, the choice of experts, or the collapse of streams with the norm of that.
  enum Last { kNothing, kNorm, kRoute, kCollapse } last = kNothing;
  size_t finished = 0;
};

/// The group that begins at nodes[first]. Groups whose results would lie over what the group still reads are not made.
NodeGroup next_group(std::span<const Node> nodes, size_t first);

/// The result of a node whose kernel can also write it in int8 (rms_norm, latent_attention), if a product soon after
/// takes it so; an empty tensor for all others.
Tensor wanted_quantized(std::span<const Node> nodes, size_t first);

/// Experts that the last block of a product chooses from: its shared memory stays below 48 KiB.
constexpr int64_t kMostLastExperts = 2048;

/// Whether the node writes to memory of `t`.
bool writes_over(const Node& node, const Tensor& t);

}  // namespace fathom::cuda
