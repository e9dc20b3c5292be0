// Runs a step's nodes such that an observer sees what every weight is multiplied with.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/backend.h"
#include "core/node.h"
#include "engine/weight_observer.h"

namespace fathom {

/// Feed-forward networks, whose hidden rows a backend keeps to itself, are composed here from the backend's matrix
/// products; the latents that attention gathers for W_UV come from the same attention with the identity in W_UV's
/// place. Needs a backend whose memory the host can read.
class WeightTap {
 public:
  /// `tensors` are the model's weights by name; all three must outlive this.
  WeightTap(const std::map<std::string, Tensor>& tensors, Backend& backend, WeightObserver& observer);

  /// True if the node's outputs have been computed here.
  bool run(const Node& node);

 private:
  const std::string* name_of(const Tensor& weight) const;
  void report(const Tensor& weight, const Tensor& rows, int64_t matrix = 0, int64_t n_matrices = 1);
  Tensor scratch(std::vector<float>& memory, int64_t n_rows, int64_t width) const;
  void multiply(const Tensor& x, const Tensor& weight, const Tensor& out);
  Tensor expert(const Tensor& x, const GatedFfnWeights& stack, int64_t expert_idx, float clamp);
  void run_ffn(const GatedFfnArgs& a);
  void run_moe(const MoeFfnArgs& a);
  void look_at(const LatentAttentionArgs& a);

  std::unordered_map<const std::byte*, const std::string*> names_;  ///< by where a tensor's bytes begin
  Backend& backend_;
  WeightObserver& observer_;
  std::vector<float> gathered_, hidden_, up_, output_;  ///< of one network and its tokens
  std::vector<float> keys_, identity_, latents_;        ///< of one attention
};

}  // namespace fathom
