// Which neighbouring nodes run together. Found again for each step; plain host code.
#pragma once

#include <cstddef>
#include <span>

#include "core/node.h"

namespace fathom::cuda {

/// Nodes of a group after its first.
constexpr int kMostGrouped = 3;

struct NodeGroup {
  enum Kind {
    kSingle,
    kProductsOfOne,   ///< linear nodes with the same x
    kWithSum,         ///< linear, gated_ffn or moe_ffn, then the add of its result: written to `sum`, on top of `add`
    kStoreAndRotate,  ///< store_latent, then rotate_heads by the same table
  } kind = kSingle;
  size_t n_nodes = 1;
  Tensor add{}, sum{};
};

/// The group that begins at nodes[first]. Groups whose results would lie over what the group still reads are not made.
NodeGroup next_group(std::span<const Node> nodes, size_t first);

/// The result of a node whose kernel can also write it in int8 (rms_norm, latent_attention), if a product soon after
/// takes it so; an empty tensor for all others.
Tensor wanted_quantized(std::span<const Node> nodes, size_t first);

/// Whether the node writes to memory of `t`.
bool writes_over(const Node& node, const Tensor& t);

}  // namespace fathom::cuda
