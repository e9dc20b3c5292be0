// A device and the host as one backend: experts whose weights stay in host memory are computed there.
#pragma once

#include <memory>
#include <set>

#include "core/backend.h"

namespace fathom {

/// First bytes of the stacks of gate matrices of mixtures that the host computes.
using HostExperts = std::set<const std::byte*>;

/// Behaves as `device`, which must not share the host's memory, except for the routed experts of mixtures in `experts`:
/// those run on `host`, or, of steps of at least stream_from tokens, on the device, which their weights pass through.
/// Their shared experts, and everything else, run on the device. Nodes of such a mixture have contiguous x, routes and
/// out. `stream_from`: 0 for never, else more than 16.
std::unique_ptr<Backend> make_split_backend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host,
                                            HostExperts experts, int64_t stream_from);

}  // namespace fathom
