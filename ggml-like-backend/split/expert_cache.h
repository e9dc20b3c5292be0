// The device's copies of the host's experts that are used most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "core/backend.h"
#include "split/hot_experts.h"

namespace fathom {

class ExpertCache {
 public:
  /// `n_bytes` of the device, shared alike by so many mixtures.
  ExpertCache(Backend& device, uint64_t n_bytes, size_t n_mixtures);

  /// Takes the mixture's share, once. Nothing if an expert is larger than it. Throws Error{kNoMemory}.
  void take(const MoeFfnArgs& mixture);

  struct Places {
    HotExperts experts;
    GatedFfnWeights weights;  ///< [places, ..], as the device stores matrices
    size_t expert_bytes = 0;  ///< of the file
    std::shared_ptr<Buffer> memory;
  };
  /// Null without a share.
  Places* places_of(const MoeFfnArgs& mixture);

  void begin_step() { moved_bytes_ = 0; }
  /// Brings experts that are worth it, a few in a step. What the device is given next comes after them.
  void bring_hot(const MoeFfnArgs& mixture);

 private:
  Backend& device_;
  const uint64_t share_bytes_;
  std::map<const std::byte*, Places> places_;  ///< by the mixture's gates
  size_t moved_bytes_ = 0;                     ///< in this step
};

}  // namespace fathom
