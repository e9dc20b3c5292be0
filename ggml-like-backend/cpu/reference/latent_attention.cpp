// Latent attention in both forms, a head at a time, on decoded weights and cache rows.
#include <cmath>

#include "core/quant/dequantize.h"
#include "cpu/attention.h"
#include "cpu/sequence_runs.h"

namespace fathom::cpu::reference {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

/// Scores to weights that sum to 1.
void softmax(float* x, int64_t n) {
  const float largest = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i] = std::exp(x[i] - largest));
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(static_cast<double>(x[i]) / sum);
}

/// The rows that a token sees: those in `list`, or the first n.
struct SeenRows {
  const int32_t* list;
  int64_t n;
  int64_t operator[](int64_t i) const { return list ? list[i] : i; }
};

SeenRows seen_rows(const LatentAttentionArgs& a, int64_t t) {
  const int64_t n_visible = a.step.positions.as<int32_t>()[t] + 1;
  if (!a.chosen) return {nullptr, n_visible};
  const int32_t* list = a.chosen.row_as<int32_t>(t);
  return {list, std::find(list, list + a.chosen.dim(1), -1) - list};
}

/// out[i] = sum_s weights[s] * rows[seen[s], i] for i < n; rows step by `stride` floats.
void mix(const float* weights, const float* rows, const SeenRows& seen, int64_t stride, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t s = 0; s < seen.n; ++s)
      sum += static_cast<double>(weights[s]) * static_cast<double>(rows[seen[s] * stride + i]);
    out[i] = static_cast<float>(sum);
  }
}

/// What one thread needs for one head, in its own workspace.
struct HeadScratch {
  int64_t n, r, v, c;
  float* w_uk;    ///< [N, C]
  float* w_uv;    ///< [V, C]
  float* rows;    ///< [S, C + R] the sequence's latents and shared keys
  float* keys;    ///< [S, N + R] expanded form
  float* values;  ///< [S, V] expanded form
  float* scores;  ///< [S]
  float* query;   ///< [C + R] absorbed form: W_UK^T q_nope, q_pe
  float* latent;  ///< [C] absorbed form: weighted sum of the latents
  size_t bytes;

  HeadScratch(const LatentAttentionArgs& a, std::byte* base)
      : n(a.nope_dim()), r(a.rope_dim()), v(a.value_dim()), c(a.latent_dim()) {
    const int64_t s = deepest_context(a.step);
    float* next = reinterpret_cast<float*>(base);
    auto take = [&](int64_t count) {
      float* p = next;
      next += count;
      return p;
    };
    w_uk = take(n * c), w_uv = take(v * c);
    rows = take(s * (c + r)), keys = take(s * (n + r)), values = take(s * v), scores = take(s);
    query = take(c + r), latent = take(c);
    bytes = static_cast<size_t>(reinterpret_cast<std::byte*>(next) - base);
  }
};

void decode_projections(const LatentAttentionArgs& a, int64_t h, const HeadScratch& x) {
  if (a.kv_b) {
    const int64_t first = h * (x.n + x.v);
    for (int64_t i = 0; i < x.n; ++i) dequantize_row(a.kv_b.dtype, a.kv_b.row(first + i), x.w_uk + i * x.c, x.c);
    for (int64_t i = 0; i < x.v; ++i) dequantize_row(a.kv_b.dtype, a.kv_b.row(first + x.n + i), x.w_uv + i * x.c, x.c);
    return;
  }
  const Tensor k_b = a.k_b.slab(h), v_b = a.v_b.slab(h);
  float* column = x.keys;  // free until the first sequence
  for (int64_t i = 0; i < x.c; ++i) {
    dequantize_row(k_b.dtype, k_b.row(i), column, x.n);
    for (int64_t j = 0; j < x.n; ++j) x.w_uk[j * x.c + i] = column[j];
  }
  for (int64_t i = 0; i < x.v; ++i) dequantize_row(v_b.dtype, v_b.row(i), x.w_uv + i * x.c, x.c);
}

/// out[i] = w[i] . x for the n_out rows of w [n_out, n].
void multiply(const float* w, const float* x, float* out, int64_t n_out, int64_t n) {
  for (int64_t i = 0; i < n_out; ++i) out[i] = static_cast<float>(dot(w + i * n, x, n));
}

void attend_expanded(const LatentAttentionArgs& a, const SequenceRun& run, int64_t h, const HeadScratch& x) {
  const int64_t key_dim = x.n + x.r;
  for (int64_t s = 0; s < run.n_visible; ++s) {
    const float* row = x.rows + s * (x.c + x.r);
    multiply(x.w_uk, row, x.keys + s * key_dim, x.n, x.c);
    std::copy_n(row + x.c, x.r, x.keys + s * key_dim + x.n);
    multiply(x.w_uv, row, x.values + s * x.v, x.v, x.c);
  }
  for (int64_t t = run.first_token; t < run.first_token + run.n_tokens; ++t) {
    const SeenRows seen = seen_rows(a, t);
    const float* q = a.q.row_as<float>(t) + h * key_dim;
    for (int64_t s = 0; s < seen.n; ++s)
      x.scores[s] = a.scale * static_cast<float>(dot(q, x.keys + seen[s] * key_dim, key_dim));
    softmax(x.scores, seen.n);
    mix(x.scores, x.values, seen, x.v, a.out.row_as<float>(t) + h * x.v, x.v);
  }
}

void attend_absorbed(const LatentAttentionArgs& a, const SequenceRun& run, int64_t h, const HeadScratch& x) {
  const int64_t row = x.c + x.r;
  for (int64_t t = run.first_token; t < run.first_token + run.n_tokens; ++t) {
    const SeenRows seen = seen_rows(a, t);
    const float* q = a.q.row_as<float>(t) + h * (x.n + x.r);
    mix(q, x.w_uk, {nullptr, x.n}, x.c, x.query, x.c);
    std::copy_n(q + x.n, x.r, x.query + x.c);
    for (int64_t s = 0; s < seen.n; ++s)
      x.scores[s] = a.scale * static_cast<float>(dot(x.query, x.rows + seen[s] * row, row));
    softmax(x.scores, seen.n);
    mix(x.scores, x.rows, seen, row, x.latent, x.c);
    multiply(x.w_uv, x.latent, a.out.row_as<float>(t) + h * x.v, x.v, x.c);
  }
}

}  // namespace

Workspace latent_attention_workspace(const LatentAttentionArgs& a, int) { return {0, HeadScratch(a, nullptr).bytes}; }

void latent_attention(const LatentAttentionArgs& a, OpContext& c) {
  const HeadScratch x(a, c.own);
  const int64_t row = x.c + x.r;
  c.worker.share(a.n_heads(), 1, [&](int64_t h, int64_t) {
    decode_projections(a, h, x);
    for_each_run(a.step, [&](const SequenceRun& run) {
      for (int64_t s = 0; s < run.n_visible; ++s) {
        dequantize_row(a.cache.dtype, cached_row(a.cache, a.step, run.sequence, s), x.rows + s * row, row);
      }
      use_expanded_form(a, run) ? attend_expanded(a, run, h, x) : attend_absorbed(a, run, h, x);
    });
  });
}

}  // namespace fathom::cpu::reference
