// Which experts of one mixture are worth a place on the device: those that the last tokens used most.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace fathom {

/// Uses count half as much for every 128 tokens since: routing follows the text at hand, and what another one used most
/// says little about it.
class HotExperts {
 public:
  HotExperts(int64_t n_experts, int64_t n_places);

  int64_t n_places() const { return static_cast<int64_t>(expert_at_.size()); }
  /// Where the expert lies; nothing: not on the device.
  std::optional<int32_t> place_of(int32_t expert) const;

  /// A token has used these.
  void used(std::span<const int32_t> experts);

  struct Move {
    int32_t expert, place;
    bool operator==(const Move&) const = default;
  };
  /// The one move that pays most, if one pays.
  std::optional<Move> best_move() const;
  void moved(const Move& move);

 private:
  static constexpr int32_t kNowhere = -1;

  std::vector<int32_t> place_of_, expert_at_;  // kNowhere: not on the device; free
  std::vector<double> uses_;                   // weighed: a use now is worth weight_
  double weight_ = 1;
};

/// The routes of a step, divided between those that have the experts. Every token keeps a like number of routes on
/// either side, as nodes want it: routes that are not a side's own have a weight of zero there.
struct DividedRoutes {
  int64_t n_hits = 0;
  std::vector<int32_t> places;       ///< [T, K] of the device's experts; empty if it has none of them
  std::vector<float> place_weights;  ///< [T, K]
  int64_t n_missed = 0;              ///< M, the most of a token's
  std::vector<int32_t> missed;       ///< [T, M] experts that the device lacks
  std::vector<float> missed_weights;
};
/// ids, weights [T, K].
DividedRoutes divide_routes(std::span<const int32_t> ids, std::span<const float> weights, int64_t n_used,
                            const HotExperts& experts);

}  // namespace fathom
