// The contracts of all operations, checked as a node is made. A failed check is a bug of the caller: model files have
// been checked against the configuration before (models/<family>/weights.cpp).
#include "ops/add.h"
#include "ops/checks.h"
#include "ops/concat_rows.h"
#include "ops/embed_rows.h"
#include "ops/index_rows.h"
#include "ops/latent_attention.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/store_latent.h"
#include "ops/take_rows.h"

namespace fathom {

Tensor embed_rows(Graph& g, const Tensor& table, const Tensor& ids, int copies) {
  expect_i32(ids, 1, "ids");
  FATHOM_CHECK(table.shape.rank == 2 && copies >= 1, "an embedding table has rows");
  Tensor out = g.new_value(DType::kF32, {ids.dim(0), copies * table.dim(1)});
  g.add(EmbedRowsArgs{table, ids, out, copies});
  return out;
}

Tensor take_rows(Graph& g, const Tensor& x, const Tensor& rows) {
  expect_f32(x, 2, "x");
  expect_i32(rows, 1, "rows");
  Tensor out = g.new_value(DType::kF32, {rows.dim(0), x.dim(1)});
  g.add(TakeRowsArgs{x, rows, out});
  return out;
}

Tensor add(Graph& g, const Tensor& a, const Tensor& b) {
  expect_f32(a, 2, "a");
  expect_f32(b, 2, "b");
  expect_shape(b, a.shape, "b");
  Tensor out = g.new_value(DType::kF32, a.shape);
  g.add(AddArgs{a, b, out});
  return out;
}

Tensor concat_rows(Graph& g, const Tensor& a, const Tensor& b) {
  expect_f32(a, 2, "a");
  expect_f32(b, 2, "b");
  FATHOM_CHECK(a.dim(0) == b.dim(0), "rows of " + a.describe() + " beside rows of " + b.describe());
  Tensor out = g.new_value(DType::kF32, {a.dim(0), a.dim(1) + b.dim(1)});
  g.add(ConcatRowsArgs{a, b, out});
  return out;
}

Tensor rms_norm(Graph& g, const Tensor& x, const Tensor& weight, float eps) {
  return rms_norm(g, x, weight, eps, g.new_value(DType::kF32, x.shape));
}

Tensor rms_norm(Graph& g, const Tensor& x, const Tensor& weight, float eps, const Tensor& out) {
  expect_f32(x, 2, "x");
  if (weight) {
    expect_f32(weight, 1, "weight");
    expect_shape(weight, {x.dim(1)}, "weight");
  }
  expect_shape(out, x.shape, "out");
  g.add(RmsNormArgs{x, weight, out, eps});
  return out;
}

Tensor layer_norm(Graph& g, const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  expect_f32(x, 2, "x");
  expect_f32(weight, 1, "weight");
  expect_f32(bias, 1, "bias");
  expect_shape(weight, {x.dim(1)}, "weight");
  expect_shape(bias, {x.dim(1)}, "bias");
  Tensor out = g.new_value(DType::kF32, x.shape);
  g.add(LayerNormArgs{x, weight, bias, out, eps});
  return out;
}

Tensor linear(Graph& g, const Tensor& x, const Tensor& weight) {
  expect_f32(x, 2, "x");
  FATHOM_CHECK(weight.shape.rank == 2 && weight.dim(1) == x.dim(1),
               "weight " + weight.describe() + " does not fit x " + x.describe());
  Tensor out = g.new_value(DType::kF32, {x.dim(0), weight.dim(0)});
  g.add(LinearArgs{x, weight, out});
  return out;
}

Tensor rope_table(Graph& g, const Tensor& positions, const Tensor& frequencies) {
  expect_i32(positions, 1, "positions");
  expect_f32(frequencies, 1, "frequencies");
  Tensor out = g.new_value(DType::kF32, {positions.dim(0), frequencies.dim(0), 2});
  g.add(RopeTableArgs{positions, frequencies, out});
  return out;
}

Tensor rotate_heads(Graph& g, const Tensor& x, const Tensor& table, int first_dim, RopePairing pairing, bool inverse) {
  expect_f32(x, 3, "x");
  expect_f32(table, 3, "table");
  FATHOM_CHECK(table.dim(0) == x.dim(0) && first_dim >= 0 && first_dim + 2 * table.dim(1) <= x.dim(2),
               "rotation of " + x.describe() + " by " + table.describe());
  Tensor out = g.new_value(DType::kF32, x.shape);
  g.add(RotateHeadsArgs{x, table, out, first_dim, pairing, inverse});
  return out;
}

void store_latent(Graph& g, const Tensor& kv_a, const Tensor& norm_weight, float eps, const Tensor& rope_table,
                  RopePairing pairing, const Tensor& slots, const Tensor& cache) {
  expect_f32(kv_a, 2, "kv_a");
  expect_f32(norm_weight, 1, "norm_weight");
  expect_i32(slots, 1, "slots");
  FATHOM_CHECK(cache.shape.rank == 3 && cache.dim(2) == kv_a.dim(1) &&
                   (norm_weight.dim(0) == kv_a.dim(1) || norm_weight.dim(0) + 2 * rope_table.dim(1) == kv_a.dim(1)) &&
                   slots.dim(0) == kv_a.dim(0) && rope_table.dim(0) == kv_a.dim(0),
               "kv_a " + kv_a.describe() + " does not fit cache " + cache.describe());
  g.add(StoreLatentArgs{kv_a, norm_weight, rope_table, slots, cache, eps, pairing});
}

void store_key_value(Graph& g, const Tensor& k, const Tensor& v, const Tensor& slots, const Tensor& cache) {
  expect_f32(k, 3, "k");
  expect_f32(v, 3, "v");
  expect_shape(v, k.shape, "v");
  expect_i32(slots, 1, "slots");
  FATHOM_CHECK(cache.shape.rank == 3 && cache.dim(2) == 2 * k.dim(1) * k.dim(2),
               "k " + k.describe() + " does not fit cache " + cache.describe());
  g.add(StoreKeyValueArgs{k, v, slots, cache});
}

void store_rows(Graph& g, const Tensor& x, const Tensor& slots, const Tensor& cache) {
  expect_f32(x, 2, "x");
  expect_i32(slots, 1, "slots");
  FATHOM_CHECK(cache.shape.rank == 3 && cache.dim(2) == x.dim(1) && slots.dim(0) == x.dim(0),
               "x " + x.describe() + " does not fit cache " + cache.describe());
  g.add(StoreRowsArgs{x, slots, cache});
}

Tensor index_rows(Graph& g, const Tensor& q, const Tensor& head_weights, const Tensor& cache, const StepTensors& step,
                  int tokens_per_row, int64_t top_k) {
  expect_f32(q, 3, "q");
  expect_f32(head_weights, 2, "head_weights");
  expect_shape(head_weights, {q.dim(0), q.dim(1)}, "head_weights");
  expect_step(step, q.dim(0));
  FATHOM_CHECK(cache.shape.rank == 3 && cache.dim(2) == q.dim(2),
               "q " + q.describe() + " does not fit cache " + cache.describe());
  FATHOM_CHECK(tokens_per_row >= 1 && top_k >= 1, "a row stands for tokens, and some rows are chosen");
  Tensor chosen = g.new_value(DType::kI32, {q.dim(0), top_k});
  g.add(IndexRowsArgs{q, head_weights, cache, step, chosen, tokens_per_row});
  return chosen;
}

Tensor latent_attention(Graph& g, const Tensor& q, const LatentProjections& w, const Tensor& cache,
                        const StepTensors& step, int64_t value_dim, float scale, AttentionForm form,
                        const Tensor& chosen) {
  expect_f32(q, 3, "q");
  expect_step(step, q.dim(0));
  Tensor out = g.new_value(DType::kF32, {q.dim(0), q.dim(1) * value_dim});
  LatentAttentionArgs a{q, w.kv_b, w.k_b, w.v_b, cache, step, out, scale, form, chosen};
  const int64_t heads = a.n_heads(), latent = a.latent_dim(), nope = a.nope_dim();
  FATHOM_CHECK(cache.shape.rank == 3 && latent > 0 && a.rope_dim() > 0 && nope > 0,
               "q " + q.describe() + " does not fit cache " + cache.describe());
  if (chosen) {
    expect_i32(chosen, 2, "chosen");
    FATHOM_CHECK(chosen.dim(0) == q.dim(0), "chosen rows for every token");
  }
  if (w.kv_b) {
    expect_shape(w.kv_b, {heads * (nope + value_dim), latent}, "kv_b");
  } else {
    expect_shape(w.k_b, {heads, latent, nope}, "k_b");
    expect_shape(w.v_b, {heads, value_dim, latent}, "v_b");
  }
  g.add(a);
  return out;
}

Tensor multi_head_attention(Graph& g, const Tensor& q, const Tensor& cache, const StepTensors& step, float scale) {
  expect_f32(q, 3, "q");
  expect_step(step, q.dim(0));
  FATHOM_CHECK(cache.shape.rank == 3 && cache.dim(2) == 2 * q.dim(1) * q.dim(2),
               "q " + q.describe() + " does not fit cache " + cache.describe());
  Tensor out = g.new_value(DType::kF32, {q.dim(0), q.dim(1) * q.dim(2)});
  g.add(MultiHeadAttentionArgs{q, cache, step, out, scale});
  return out;
}

namespace {

ExpertRoutes new_routes(Graph& g, const Tensor& logits, const RouterParams& params) {
  return {g.new_value(DType::kI32, {logits.dim(0), params.n_used}),
          g.new_value(DType::kF32, {logits.dim(0), params.n_used})};
}

}  // namespace

ExpertRoutes route_experts(Graph& g, const Tensor& logits, const Tensor& bias, const RouterParams& params) {
  expect_f32(logits, 2, "logits");
  const int64_t n_experts = logits.dim(1);
  if (bias) expect_shape(bias, {n_experts}, "bias");
  FATHOM_CHECK(params.n_used >= 1 && params.n_groups >= 1 && n_experts % params.n_groups == 0 &&
                   params.n_groups_used >= 1 && params.n_groups_used <= params.n_groups &&
                   params.n_used <= n_experts / params.n_groups * params.n_groups_used,
               "router parameters do not fit " + std::to_string(n_experts) + " experts");
  const ExpertRoutes routes = new_routes(g, logits, params);
  g.add(RouteExpertsArgs{logits, bias, routes.ids, routes.weights, params});
  return routes;
}

ExpertRoutes route_experts_by_id(Graph& g, const Tensor& logits, const Tensor& table, const Tensor& token_ids,
                                 const RouterParams& params) {
  expect_f32(logits, 2, "logits");
  expect_i32(table, 2, "table");
  expect_i32(token_ids, 1, "token_ids");
  FATHOM_CHECK(table.dim(1) == params.n_used && token_ids.dim(0) == logits.dim(0),
               "table " + table.describe() + " does not give every token its experts");
  const ExpertRoutes routes = new_routes(g, logits, params);
  g.add(RouteExpertsArgs{logits, {}, routes.ids, routes.weights, params, table, token_ids});
  return routes;
}

Tensor moe_ffn(Graph& g, const Tensor& x, const ExpertRoutes& routes, const GatedFfnWeights& experts,
               const GatedFfnWeights& shared, float clamp, float shared_clamp) {
  expect_f32(x, 2, "x");
  FATHOM_CHECK(clamp > 0 && shared_clamp > 0, "a limit of hidden values is positive");
  FATHOM_CHECK(experts.gate.shape.rank == 3 && experts.down.shape.rank == 3, "expert weights are stacked");
  expect_ffn(experts, x.dim(1), "experts");
  if (shared.gate) expect_ffn(shared, x.dim(1), "shared experts");
  FATHOM_CHECK(routes.ids.dim(0) == x.dim(0) && routes.weights.shape == routes.ids.shape, "a route for every token");
  Tensor out = g.new_value(DType::kF32, x.shape);
  g.add(MoeFfnArgs{x, routes.ids, routes.weights, experts, shared, out, clamp, shared_clamp});
  return out;
}

Tensor gated_ffn(Graph& g, const Tensor& x, const GatedFfnWeights& weights) {
  expect_f32(x, 2, "x");
  FATHOM_CHECK(weights.gate.shape.rank == 2 && weights.down.shape.rank == 2, "weights of one network");
  expect_ffn(weights, x.dim(1), "gated_ffn");
  Tensor out = g.new_value(DType::kF32, x.shape);
  g.add(GatedFfnArgs{x, weights, out});
  return out;
}

}  // namespace fathom
