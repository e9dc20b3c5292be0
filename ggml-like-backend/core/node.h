// The operations a backend executes: one struct of named tensors for each. ops/<op>.h builds them with checks, the
// graph gives their values addresses, a backend computes them. Shapes are slowest first; the legend stands in
// models/README.md.
#pragma once

#include <cstdint>
#include <string_view>
#include <variant>

#include "core/tensor.h"

namespace fathom {

/// Which two numbers of a head a rotation turns: (x[2i], x[2i+1]) or (x[i], x[i + R/2]).
enum class RopePairing { kAdjacent, kHalves };

/// How latent attention is computed; all give the same values up to rounding.
/// Absorbed: scores straight against the latents, cheap for few queries. Expanded: K and V of every head are made from
/// the latents first, cheap from about 171 queries on (C*(N+V) multiplications for each key against (C+R+C)-(N+R+V)
/// saved for each pair).
enum class AttentionForm { kAuto, kExpanded, kAbsorbed };

/// How router logits become scores.
enum class RouterScore { kSoftmax, kSigmoid, kSqrtSoftplus };
/// By what groups of experts are ranked: their best expert (V2) or the sum of their two best (V3).
enum class GroupRank { kBest, kSumOfTwoBest };

struct RouterParams {
  int n_used = 0;  ///< K
  RouterScore score = RouterScore::kSoftmax;
  int n_groups = 1;       ///< consecutive experts of equal count form a group
  int n_groups_used = 1;  ///< only experts of the best groups can be chosen
  GroupRank group_rank = GroupRank::kBest;
  bool normalize = false;  ///< weights are divided by their sum
  float scale = 1.0F;      ///< then multiplied by this
};

/// Where each token of a step stands. All I32; the same for every layer of a step.
struct StepTensors {
  Tensor positions;    ///< [T] position in its sequence
  Tensor slots;        ///< [T] flat cache row the token's own latent is stored in: page_id * page_tokens + offset
  Tensor sequence_of;  ///< [T] row of page_table; tokens of one sequence are neighbours, in order of position
  Tensor page_table;   ///< [S, P] page ids of each sequence in order of position; unused entries are -1
  Tensor expanded{};   ///< [S] 1: AttentionForm::kAuto is expanded for this sequence, 0: absorbed; empty: by its number
                       ///< of tokens
};

struct EmbedRowsArgs {
  Tensor table;  ///< [W, D] any type
  Tensor ids;    ///< [T] I32
  Tensor out;    ///< [T, D] f32
  template <typename F> void inputs(F&& f) { f(table), f(ids); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct TakeRowsArgs {
  Tensor x;     ///< [T, D] f32
  Tensor rows;  ///< [P] I32
  Tensor out;   ///< [P, D] f32
  template <typename F> void inputs(F&& f) { f(x), f(rows); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct AddArgs {
  Tensor a, b;  ///< [T, D] f32
  Tensor out;   ///< [T, D] f32
  template <typename F> void inputs(F&& f) { f(a), f(b); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct RmsNormArgs {
  Tensor x;       ///< [T, D] f32
  Tensor weight;  ///< [D] f32
  Tensor out;     ///< [T, D] f32
  float eps = 0;
  template <typename F> void inputs(F&& f) { f(x), f(weight); }
  template <typename F> void outputs(F&& f) { f(out); }
};

/// y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias
struct LayerNormArgs {
  Tensor x;             ///< [T, D] f32
  Tensor weight, bias;  ///< [D] f32
  Tensor out;           ///< [T, D] f32
  float eps = 0;
  template <typename F> void inputs(F&& f) { f(x), f(weight), f(bias); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct LinearArgs {
  Tensor x;       ///< [T, I] f32
  Tensor weight;  ///< [O, I] any type
  Tensor out;     ///< [T, O] f32
  template <typename F> void inputs(F&& f) { f(x), f(weight); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct RopeTableArgs {
  Tensor positions;    ///< [T] I32
  Tensor frequencies;  ///< [R/2] f32, radians per position
  Tensor out;          ///< [T, R/2, 2] f32: cosine, sine
  template <typename F> void inputs(F&& f) { f(positions), f(frequencies); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct RotateHeadsArgs {
  Tensor x;      ///< [T, H, N] f32
  Tensor table;  ///< [T, R/2, 2] f32
  Tensor out;    ///< [T, H, N] f32; dimensions [first_dim, first_dim + R) of every head are rotated
  int first_dim = 0;
  RopePairing pairing = RopePairing::kAdjacent;
  template <typename F> void inputs(F&& f) { f(x), f(table); }
  template <typename F> void outputs(F&& f) { f(out); }
};

/// Norm of the latent, rotation of the shared key, and the row's way into the cache.
struct StoreLatentArgs {
  Tensor kv_a;         ///< [T, C + R] f32: latent before its norm, key before rotation
  Tensor norm_weight;  ///< [C] f32
  Tensor rope_table;   ///< [T, R/2, 2] f32
  Tensor slots;        ///< [T] I32
  Tensor cache;        ///< [pages, page_tokens, C + R] cache type; written
  float eps = 0;
  RopePairing pairing = RopePairing::kAdjacent;
  template <typename F> void inputs(F&& f) { f(kv_a), f(norm_weight), f(rope_table), f(slots), f(cache); }
  template <typename F> void outputs(F&&) {}
};

struct StoreKeyValueArgs {
  Tensor k;      ///< [T, H, N] f32, rotated
  Tensor v;      ///< [T, H, N] f32
  Tensor slots;  ///< [T] I32
  Tensor cache;  ///< [pages, page_tokens, 2 * H * N]: all heads' keys, then all heads' values; written
  template <typename F> void inputs(F&& f) { f(k), f(v), f(slots), f(cache); }
  template <typename F> void outputs(F&&) {}
};

/// Rows as they are into the cache.
struct StoreRowsArgs {
  Tensor x;      ///< [T, N] f32
  Tensor slots;  ///< [T] I32
  Tensor cache;  ///< [pages, rows of a page, N] cache type; written
  template <typename F> void inputs(F&& f) { f(x), f(slots), f(cache); }
  template <typename F> void outputs(F&&) {}
};

/// The lightning indexer: which cached rows attention may see. Row w of a sequence stands for tokens_per_row tokens; a
/// token at position p sees the first floor((p + 1) / tokens_per_row) rows, and chooses those of highest score
/// sum_h head_weights[h] * relu(q[h] . row), ties to the lower row.
struct IndexRowsArgs {
  Tensor q;             ///< [T, HI, DI] f32, rotated
  Tensor head_weights;  ///< [T, HI] f32
  Tensor cache;         ///< [pages, rows of a page, DI] index keys
  StepTensors step;
  Tensor chosen;  ///< [T, top_k] I32 rows of the token's sequence, rising; the rest -1 where fewer are visible
  int tokens_per_row = 1;
  template <typename F> void inputs(F&& f) {
    f(q), f(head_weights), f(cache), f(step.positions), f(step.sequence_of), f(step.page_table);
  }
  template <typename F> void outputs(F&& f) { f(chosen); }
};

/// Causal attention of every token over its sequence's cached latents, its own included.
struct LatentAttentionArgs {
  Tensor q;  ///< [T, H, N + R] f32, the last R rotated
  /// Either kv_b [H * (N + V), C], per head N rows of W_UK then V rows of W_UV, or k_b [H, C, N] (W_UK transposed) and
  /// v_b [H, V, C]. The other is empty.
  Tensor kv_b, k_b, v_b;
  Tensor cache;  ///< [pages, page_tokens, C + R]
  StepTensors step;
  Tensor out;  ///< [T, H * V] f32
  float scale = 1;
  AttentionForm form = AttentionForm::kAuto;
  /// [T, top_k] I32 of IndexRowsArgs: a token sees these rows alone. Empty: all up to its position.
  Tensor chosen{};
  template <typename F> void inputs(F&& f) {
    f(q), f(kv_b), f(k_b), f(v_b), f(cache), f(step.positions), f(step.sequence_of), f(step.page_table),
        f(step.expanded), f(chosen);
  }
  template <typename F> void outputs(F&& f) { f(out); }

  int64_t n_heads() const { return q.dim(1); }
  int64_t value_dim() const { return out.dim(1) / n_heads(); }            ///< V
  int64_t latent_dim() const { return kv_b ? kv_b.dim(1) : k_b.dim(1); }  ///< C
  int64_t rope_dim() const { return cache.dim(2) - latent_dim(); }        ///< R
  int64_t nope_dim() const { return q.dim(2) - rope_dim(); }              ///< N
};

/// Causal attention with a key and a value head for every query head (V1).
struct MultiHeadAttentionArgs {
  Tensor q;      ///< [T, H, N] f32, rotated
  Tensor cache;  ///< [pages, page_tokens, 2 * H * N]
  StepTensors step;
  Tensor out;  ///< [T, H * N] f32
  float scale = 1;
  template <typename F> void inputs(F&& f) {
    f(q), f(cache), f(step.positions), f(step.sequence_of), f(step.page_table);
  }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct RouteExpertsArgs {
  Tensor logits;   ///< [T, E] f32
  Tensor bias;     ///< [E] f32 or empty: added to the scores for the choice only
  Tensor ids;      ///< [T, K] I32, best first; ties go to the lower id
  Tensor weights;  ///< [T, K] f32
  RouterParams params;
  template <typename F> void inputs(F&& f) { f(logits), f(bias); }
  template <typename F> void outputs(F&& f) { f(ids), f(weights); }
};

struct GatedFfnWeights {
  Tensor gate, up;  ///< [F, D] ([E, F, D] for experts)
  Tensor down;      ///< [D, F] ([E, D, F])
  template <typename F> void each(F&& f) { f(gate), f(up), f(down); }
};

/// down(silu(gate x) * (up x))
struct GatedFfnArgs {
  Tensor x;  ///< [T, D] f32
  GatedFfnWeights weights;
  Tensor out;  ///< [T, D] f32
  template <typename F> void inputs(F&& f) { f(x), weights.each(f); }
  template <typename F> void outputs(F&& f) { f(out); }
};

/// Sum over a token's experts of weight * expert(x), plus the shared experts' output where there are any.
struct MoeFfnArgs {
  Tensor x;                 ///< [T, D] f32
  Tensor expert_ids;        ///< [T, K] I32
  Tensor expert_weights;    ///< [T, K] f32
  GatedFfnWeights experts;  ///< [E, ...]
  GatedFfnWeights shared;   ///< empty tensors: none
  Tensor out;               ///< [T, D] f32
  template <typename F> void inputs(F&& f) { f(x), f(expert_ids), f(expert_weights), experts.each(f), shared.each(f); }
  template <typename F> void outputs(F&& f) { f(out); }
};

using NodeArgs =
    std::variant<EmbedRowsArgs, TakeRowsArgs, AddArgs, RmsNormArgs, LinearArgs, RopeTableArgs, RotateHeadsArgs,
                 StoreLatentArgs, StoreKeyValueArgs, LatentAttentionArgs, MultiHeadAttentionArgs, RouteExpertsArgs,
                 GatedFfnArgs, MoeFfnArgs, LayerNormArgs, StoreRowsArgs, IndexRowsArgs>;

struct Node {
  NodeArgs args;
};

std::string_view op_name(const Node& node);

}  // namespace fathom
