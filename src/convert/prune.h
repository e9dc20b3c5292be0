// A smaller model of the experts that matter most.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "convert/convert.h"

namespace fathom {

/// What the model's router asks of a choice of experts.
struct RouterShape {
  int64_t n_experts = 0, n_used = 0;
  int64_t n_groups = 1, n_groups_used = 1;
  int64_t least_of_group = 1;  ///< experts that ranking a group looks at
};

/// The experts to keep of a layer, in order. Groups are of consecutive experts and stay of equal size: each keeps its
/// best. Equal saliency: the lower id. Throws Error{kUsage} for counts that the router cannot work with, naming the
/// nearest that it can.
std::vector<int64_t> choose_experts(const std::vector<double>& saliency, const RouterShape& router, int64_t n_keep);

struct PruneOptions : WriteOptions {
  std::string in;
  int64_t n_keep = 0;
  RouterShape router;
  std::map<std::string, std::vector<double>> saliency;  ///< by the name of a layer's down matrices, for each expert
  std::string dataset;                                  ///< what it was measured on
  std::map<std::string, double> numbers;  ///< architecture keys that readers would infer from the number of experts
};

/// Throws what prune_file would say of its paths, so that it can be said before anything is measured.
void check_prune_paths(const PruneOptions& options);

/// Writes the model with `n_keep` experts a layer: stacks, router rows and selection biases lose the same ones,
/// everything else is copied bit for bit. MTP layers whose experts were not measured are left out. The file tells
/// what was done to it (fathom.prune.*) and is called so. Resumed as converting is. Throws Error{kUsage}, Error{kModel}
/// for a model without routed experts or whose experts are chosen by a table of tokens (V4's first layers),
/// Error{kRuntime}.
WriteReport prune_file(const PruneOptions& options);

}  // namespace fathom
