#pragma once
#include "graph/graph.h"

namespace fathom {

struct ExpertRoutes {
  Tensor ids;      ///< [T, K] I32, best first
  Tensor weights;  ///< [T, K] f32
};

/// Chooses K of E experts for each token. logits [T, E] f32; bias [E] f32 or empty.
/// Scores s = softmax, sigmoid or sqrt(softplus) of the logits; sel = s + bias; only groups that rank among the best
/// n_groups_used stay; the K highest sel win, ties to the lower id; weights = s of the winners, normalized and scaled
/// as the parameters say. All in f32, exact: no capacity, no dropped token. Source: arXiv:2412.19437, section 2.1.2.
ExpertRoutes route_experts(Graph& g, const Tensor& logits, const Tensor& bias, const RouterParams& params);

/// The same scores for experts that the token's id chooses: table [W, K] I32 of expert ids (checked to be below E),
/// token_ids [T] I32 in [0, W). Ids in the table's order. V4's first layers.
ExpertRoutes route_experts_by_id(Graph& g, const Tensor& logits, const Tensor& table, const Tensor& token_ids,
                                 const RouterParams& params);

/// sum_k weight_k * expert_k(x) + shared(x), each expert down(silu(gate x) * (up x)).
/// x [T, D] f32; experts.gate, up [E, F, D], down [E, D, F]; shared without the E, or empty -> [T, D] f32.
/// clamp: gate x is limited from above before its SiLU, up x on both sides; positive.
Tensor moe_ffn(Graph& g, const Tensor& x, const ExpertRoutes& routes, const GatedFfnWeights& experts,
               const GatedFfnWeights& shared, float clamp = kNoClamp, float shared_clamp = kNoClamp);

/// down(silu(gate x) * (up x)): x [T, D] f32, gate, up [F, D], down [D, F] -> [T, D] f32. Source: arXiv:2002.05202.
Tensor gated_ffn(Graph& g, const Tensor& x, const GatedFfnWeights& weights);

}  // namespace fathom
