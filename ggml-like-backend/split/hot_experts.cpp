#include "split/hot_experts.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace fathom {
namespace {

const double kGrowth = std::exp2(1.0 / 128);  // of a use's worth from token to token
constexpr double kRescaleAt = 1e100;
/// An expert has to be used so much more than the one it drives out: each move takes as long as some misses.
constexpr double kMargin = 1.25, kMarginUses = 0.5;

}  // namespace

HotExperts::HotExperts(int64_t n_experts, int64_t n_places)
    : place_of_(static_cast<size_t>(n_experts), kNowhere),
      expert_at_(static_cast<size_t>(std::min(n_places, n_experts)), kNowhere),
      uses_(static_cast<size_t>(n_experts), 0) {}

std::optional<int32_t> HotExperts::place_of(int32_t expert) const {
  const int32_t place = place_of_[static_cast<size_t>(expert)];
  return place == kNowhere ? std::nullopt : std::optional(place);
}

void HotExperts::used(std::span<const int32_t> experts) {
  for (const int32_t expert : experts) uses_[static_cast<size_t>(expert)] += weight_;
  weight_ *= kGrowth;
  if (weight_ < kRescaleAt) return;
  for (double& uses : uses_) uses /= weight_;
  weight_ = 1;
}

std::optional<HotExperts::Move> HotExperts::best_move() const {
  if (expert_at_.empty()) return std::nullopt;
  int32_t comes = kNowhere;
  for (int32_t i = 0; i < static_cast<int32_t>(uses_.size()); ++i) {
    const auto at = static_cast<size_t>(i);
    if (place_of_[at] == kNowhere && (comes == kNowhere || uses_[at] > uses_[static_cast<size_t>(comes)])) comes = i;
  }
  if (comes == kNowhere) return std::nullopt;
  const double gain = uses_[static_cast<size_t>(comes)];
  // -1 in a free place, so that it is the least of all.
  const auto uses_at = [this](int32_t expert) { return expert == kNowhere ? -1 : uses_[static_cast<size_t>(expert)]; };
  const auto least = std::min_element(expert_at_.begin(), expert_at_.end(),
                                      [&](int32_t a, int32_t b) { return uses_at(a) < uses_at(b); });
  const bool pays = *least == kNowhere ? gain > 0 : gain > kMargin * uses_at(*least) + kMarginUses * weight_;
  if (!pays) return std::nullopt;
  return Move{comes, static_cast<int32_t>(least - expert_at_.begin())};
}

void HotExperts::moved(const Move& move) {
  int32_t& expert = expert_at_[static_cast<size_t>(move.place)];
  FATHOM_CHECK(place_of_[static_cast<size_t>(move.expert)] == kNowhere, "an expert in two places");
  if (expert != kNowhere) place_of_[static_cast<size_t>(expert)] = kNowhere;
  expert = move.expert;
  place_of_[static_cast<size_t>(move.expert)] = move.place;
}

DividedRoutes divide_routes(std::span<const int32_t> ids, std::span<const float> weights, int64_t n_used,
                            const HotExperts& experts) {
  const auto per_token = static_cast<size_t>(n_used);
  const size_t n_tokens = ids.size() / per_token;
  DividedRoutes d;
  std::vector<std::optional<int32_t>> place_of;
  int32_t any_place = 0, any_missed = 0;
  size_t most_missed = 0;
  for (size_t t = 0; t < n_tokens; ++t) {
    size_t n_missed = 0;
    for (size_t route = t * per_token; route < (t + 1) * per_token; ++route) {
      place_of.push_back(experts.place_of(ids[route]));
      if (place_of.back()) {
        any_place = *place_of.back();
        ++d.n_hits;
      } else {
        any_missed = ids[route];
        ++n_missed;
      }
    }
    most_missed = std::max(most_missed, n_missed);
  }
  d.n_missed = static_cast<int64_t>(most_missed);
  for (size_t t = 0; t < n_tokens; ++t) {
    for (size_t route = t * per_token; route < (t + 1) * per_token; ++route) {
      if (d.n_hits > 0) {
        d.places.push_back(place_of[route].value_or(any_place));
        d.place_weights.push_back(place_of[route] ? weights[route] : 0);
      }
      if (!place_of[route]) {
        d.missed.push_back(ids[route]);
        d.missed_weights.push_back(weights[route]);
      }
    }
    // Filled up with an expert that is read anyway.
    d.missed.resize((t + 1) * most_missed, d.missed.size() > t * most_missed ? d.missed[t * most_missed] : any_missed);
    d.missed_weights.resize(d.missed.size(), 0);
  }
  return d;
}

}  // namespace fathom
