#include "split/expert_cache.h"

#include <utility>

namespace fathom {
namespace {

/// What comes in a step: milliseconds of copying, where the experts that the host computes take many.
constexpr size_t kMostMovedBytes = size_t{48} << 20;
constexpr size_t kAlign = 256;  // of Backend::upload_weights

size_t align_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

ExpertCache::ExpertCache(Backend& device, uint64_t n_bytes, size_t n_mixtures)
    : device_(device), share_bytes_(n_mixtures == 0 ? 0 : n_bytes / n_mixtures) {}

ExpertCache::Places* ExpertCache::places_of(const MoeFfnArgs& mixture) {
  const auto found = places_.find(mixture.experts.gate.data);
  return found == places_.end() ? nullptr : &found->second;
}

void ExpertCache::take(const MoeFfnArgs& mixture) {
  if (places_of(mixture) != nullptr) return;
  const GatedFfnWeights& w = mixture.experts;
  const auto row = [&](const Tensor& matrices) { return device_.weight_row_bytes(matrices.dtype, matrices.dim(2)); };
  const auto matrix = [&](const Tensor& matrices) {
    return align_up(static_cast<size_t>(matrices.dim(1)) * row(matrices));
  };
  const size_t expert_bytes = matrix(w.gate) + matrix(w.up) + matrix(w.down);
  HotExperts experts(w.gate.dim(0), static_cast<int64_t>(share_bytes_ / expert_bytes));
  const int64_t n_places = experts.n_places();
  if (n_places == 0) return;
  Places places{std::move(experts), {}, 0, nullptr};
  places.memory = device_.allocate(static_cast<size_t>(n_places) * expert_bytes, "hot experts");
  std::byte* at = places.memory->data();
  const auto stack = [&](const Tensor& matrices) {
    Tensor t(matrices.dtype, {n_places, matrices.dim(1), matrices.dim(2)}, at);
    t.strides_bytes[0] = static_cast<int64_t>(matrix(matrices));
    t.strides_bytes[1] = static_cast<int64_t>(row(matrices));
    at += static_cast<size_t>(n_places) * matrix(matrices);
    places.expert_bytes += matrices.slab(0).size_bytes();
    return t;
  };
  places.weights.gate = stack(w.gate);
  places.weights.up = stack(w.up);
  places.weights.down = stack(w.down);
  places_.emplace(w.gate.data, std::move(places));
}

void ExpertCache::bring_hot(const MoeFfnArgs& mixture) {
  Places& places = *places_of(mixture);
  while (moved_bytes_ == 0 || moved_bytes_ + places.expert_bytes <= kMostMovedBytes) {
    const std::optional<HotExperts::Move> move = places.experts.best_move();
    if (!move) return;
    const auto bring = [&](const Tensor& from, const Tensor& to) {
      const Tensor matrix = from.slab(move->expert);
      device_.upload_weights(to.row(move->place), matrix.data, matrix.dtype, matrix.dim(0), matrix.dim(1));
    };
    bring(mixture.experts.gate, places.weights.gate);
    bring(mixture.experts.up, places.weights.up);
    bring(mixture.experts.down, places.weights.down);
    places.experts.moved(*move);
    moved_bytes_ += places.expert_bytes;
  }
}

}  // namespace fathom
