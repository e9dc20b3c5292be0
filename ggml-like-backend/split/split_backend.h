// A device and the host as one backend: experts whose weights stay in host memory are computed there.
#pragma once

#include <cstdint>
#include <memory>
#include <set>

#include "core/backend.h"

namespace fathom {

/// First bytes of the stacks of gate matrices of mixtures that the host computes.
using HostExperts = std::set<const std::byte*>;

struct SplitOptions {
  /// Steps of at least so many tokens, more than 16, run these experts on the device, which their weights pass through;
  /// 0: never.
  int64_t stream_from = 0;
  /// Of the device's memory: for the experts that steps of up to 16 tokens used most of late. Which those are, and with
  /// it the last bits of a result, depends on the tokens before.
  uint64_t cache_bytes = 0;
};

/// Behaves as `device`, which must not share the host's memory, except for the routed experts of mixtures in `experts`:
/// those run on `host` but for what SplitOptions says. Their shared experts, and everything else, run on the device.
/// Nodes of such a mixture have contiguous x, routes and out.
std::unique_ptr<Backend> make_split_backend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host,
                                            HostExperts experts, const SplitOptions& options);

}  // namespace fathom
