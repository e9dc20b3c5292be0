// The operations a backend executes: one struct of named tensors for each. ops/<op>.h builds them with checks, the
// graph gives their values addresses, a backend computes them. Shapes are slowest first; the legend stands in
// models/README.md.
#pragma once

#include <cstdint>
#include <limits>
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
  Tensor out;    ///< [T, copies * D] f32: every row stands so often side by side
  int copies = 1;
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

/// Side by side: every row of a, then the same row of b.
struct ConcatRowsArgs {
  Tensor a;    ///< [T, A] f32
  Tensor b;    ///< [T, B] f32
  Tensor out;  ///< [T, A + B] f32
  template <typename F> void inputs(F&& f) { f(a), f(b); }
  template <typename F> void outputs(F&& f) { f(out); }
};

struct RmsNormArgs {
  Tensor x;       ///< [T, D] f32
  Tensor weight;  ///< [D] f32, or empty: ones
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
  bool inverse = false;  ///< by the negative angles
  template <typename F> void inputs(F&& f) { f(x), f(table); }
  template <typename F> void outputs(F&& f) { f(out); }
};

/// Norm of the latent, rotation of the shared key, and the row's way into the cache. A norm of the whole row (V4, where
/// key and value are one vector) comes before the rotation of its last R.
struct StoreLatentArgs {
  Tensor kv_a;         ///< [T, C + R] f32: latent before its norm, key before rotation
  Tensor norm_weight;  ///< [C] f32, or [C + R]: of the whole row
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
  Tensor table{};      ///< [W, K] I32 or empty: the experts of a token are those of its id, in this order
  Tensor token_ids{};  ///< [T] I32, with a table
  template <typename F> void inputs(F&& f) { f(logits), f(bias), f(table), f(token_ids); }
  template <typename F> void outputs(F&& f) { f(ids), f(weights); }
};

struct GatedFfnWeights {
  Tensor gate, up;  ///< [F, D] ([E, F, D] for experts)
  Tensor down;      ///< [D, F] ([E, D, F])
  template <typename F> void each(F&& f) { f(gate), f(up), f(down); }
};

/// No limit of a gated network's hidden values.
constexpr float kNoClamp = std::numeric_limits<float>::infinity();

/// down(silu(min(gate x, clamp)) * max(-clamp, min(up x, clamp)))
struct GatedFfnArgs {
  Tensor x;  ///< [T, D] f32
  GatedFfnWeights weights;
  Tensor out;  ///< [T, D] f32
  float clamp = kNoClamp;
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
  float clamp = kNoClamp, shared_clamp = kNoClamp;
  template <typename F> void inputs(F&& f) { f(x), f(expert_ids), f(expert_weights), experts.each(f), shared.each(f); }
  template <typename F> void outputs(F&& f) { f(out); }
};

/// A matrix of G diagonal blocks: group g of x meets rows [g * O, (g + 1) * O) of the weight and no others.
struct GroupedLinearArgs {
  Tensor x;       ///< [T, G * I] f32
  Tensor weight;  ///< [G * O, I] any type
  Tensor out;     ///< [T, G * O] f32
  template <typename F> void inputs(F&& f) { f(x), f(weight); }
  template <typename F> void outputs(F&& f) { f(out); }
  int64_t n_groups() const { return x.dim(1) / weight.dim(1); }
};

/// Hyper-connections: from M residual streams to the input of a sublayer (or, without `mixing`, of the head), and the
/// coefficients with which its output goes back.
struct CollapseStreamsArgs {
  Tensor streams;   ///< [T, M * D] f32
  Tensor products;  ///< [T, (2 + M) * M] f32, the streams times the mixing matrix before their norm; of the head [T, M]
  Tensor base;      ///< as many f32
  Tensor scale;     ///< [3] f32: of input, output and mixing coefficients; of the head [1]
  Tensor out;       ///< [T, D] f32
  Tensor mixing;    ///< [T, M + M * M] f32: output coefficients, then the mixing matrix [from][to]; of the head empty
  float norm_eps = 0;
  float eps = 0;       ///< added to input coefficients and in every division of the normalization
  int iterations = 0;  ///< of rows and columns in turn
  template <typename F> void inputs(F&& f) { f(streams), f(products), f(base), f(scale); }
  template <typename F> void outputs(F&& f) { f(out), f(mixing); }
  int64_t n_streams() const { return streams.dim(1) / out.dim(1); }
};

/// out[j] = mixing.post[j] * y + sum_i mixing.matrix[i][j] * streams[i]
struct ExpandStreamsArgs {
  Tensor streams;  ///< [T, M * D] f32
  Tensor y;        ///< [T, D] f32
  Tensor mixing;   ///< [T, M + M * M] f32
  Tensor out;      ///< [T, M * D] f32
  template <typename F> void inputs(F&& f) { f(streams), f(y), f(mixing); }
  template <typename F> void outputs(F&& f) { f(out); }
  int64_t n_streams() const { return streams.dim(1) / y.dim(1); }
};

/// Rows that each stand for `ratio` tokens, made when the last of them comes, from what every token leaves pending.
struct CompressRowsArgs {
  Tensor kv;           ///< [T, S * N] f32; S = 2: windows overlap, channels [0, N) are for the row after a token's own
  Tensor gate;         ///< [T, S * N] f32
  Tensor positional;   ///< [ratio, S * N] f32, added to the gate of a window's tokens
  Tensor norm_weight;  ///< [N] f32
  Tensor frequencies;  ///< [R/2] f32: a row's last R are rotated as at its first token's position
  Tensor pending;      ///< [pages, page_tokens, 2 * S * N] f32: kv, gate with positional; written and read
  Tensor cache;        ///< [pages, max(1, page_tokens / ratio), N] cache type; written
  StepTensors step;
  int64_t ratio = 0;
  float eps = 0;
  template <typename F> void inputs(F&& f) {
    f(kv), f(gate), f(positional), f(norm_weight), f(frequencies), f(pending), f(cache), f(step.positions),
        f(step.slots), f(step.sequence_of), f(step.page_table);
  }
  template <typename F> void outputs(F&&) {}
  int64_t row_dim() const { return norm_weight.dim(0); }  ///< N
  bool overlaps() const { return kv.dim(1) == 2 * row_dim(); }
};

/// Attention of all heads over one row a token that is key and value at once: the last `window` tokens, and compressed
/// rows. A sink of each head enters the softmax and has no value.
struct CompressedAttentionArgs {
  Tensor q;           ///< [T, H, N] f32, rotated
  Tensor window;      ///< [pages, page_tokens, N]
  Tensor compressed;  ///< [pages, max(1, page_tokens / ratio), N], or empty: the window alone
  Tensor chosen;      ///< [T, top_k] I32 of index_rows; empty: all compressed rows that are visible
  Tensor sinks;       ///< [H] f32
  StepTensors step;
  Tensor out;  ///< [T, H * N] f32
  float scale = 1;
  int64_t window_tokens = 0;
  int64_t ratio = 0;  ///< tokens of a compressed row
  template <typename F> void inputs(F&& f) {
    f(q), f(window), f(compressed), f(chosen), f(sinks), f(step.positions), f(step.sequence_of), f(step.page_table);
  }
  template <typename F> void outputs(F&& f) { f(out); }
};

using NodeArgs =
    std::variant<EmbedRowsArgs, TakeRowsArgs, ConcatRowsArgs, AddArgs, RmsNormArgs, LinearArgs, RopeTableArgs,
                 RotateHeadsArgs, StoreLatentArgs, StoreKeyValueArgs, LatentAttentionArgs, MultiHeadAttentionArgs,
                 RouteExpertsArgs, GatedFfnArgs, MoeFfnArgs, LayerNormArgs, StoreRowsArgs, IndexRowsArgs,
                 GroupedLinearArgs, CollapseStreamsArgs, ExpandStreamsArgs, CompressRowsArgs, CompressedAttentionArgs>;

struct Node {
  NodeArgs args;
};

std::string_view op_name(const Node& node);

}  // namespace fathom
