// The tensors of one DeepSeek model under the names its papers and checkpoints use, checked against its configuration.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/tensor.h"
#include "deepseek/config.h"
#include "ops/compressed_attention.h"
#include "ops/hyper_connections.h"
#include "ops/latent_attention.h"
#include "ops/moe.h"

namespace fathom::deepseek {

/// V3.2's lightning indexer: scores of all cached tokens, by which attention chooses some.
struct IndexerWeights {
  Tensor wq_b;                 ///< [HI * DI, Q]
  Tensor wk;                   ///< [DI, D]
  Tensor k_norm, k_norm_bias;  ///< [DI]
  Tensor weights_proj;         ///< [HI, D]
  template <typename F> void each(F&& f) { f(wq_b), f(wk), f(k_norm), f(k_norm_bias), f(weights_proj); }
};

/// Latent attention: q either as q_proj or compressed, and everything from kv_a_proj on.
struct MlaWeights {
  Tensor q_proj;                             ///< [H * (N + R), D], if queries are not compressed
  Tensor q_a_proj, q_a_layernorm, q_b_proj;  ///< [Q, D], [Q], [H * (N + R), Q]
  Tensor kv_a_proj;                          ///< [C + R, D]
  Tensor kv_a_layernorm;                     ///< [C]
  LatentProjections kv_b;
  Tensor o_proj;           ///< [D, H * V]
  IndexerWeights indexer;  ///< or empty
  template <typename F> void each(F&& f) {
    f(q_proj), f(q_a_proj), f(q_a_layernorm), f(q_b_proj), f(kv_a_proj), f(kv_a_layernorm), f(kv_b.kv_b), f(kv_b.k_b),
        f(kv_b.v_b), f(o_proj), indexer.each(f);
  }
};

/// V1's attention.
struct MhaWeights {
  Tensor q_proj, k_proj, v_proj;  ///< [H * N, D]; rows of q and k ordered for rotation of adjacent pairs
  Tensor o_proj;                  ///< [D, H * N]
  template <typename F> void each(F&& f) { f(q_proj), f(k_proj), f(v_proj), f(o_proj); }
};

/// V4's choice among compressed rows.
struct CompressedIndexerWeights {
  Tensor q_b_proj;               ///< [HI * DI, Q], from the attention's compressed queries
  Tensor weights_proj;           ///< [HI, D]
  CompressorWeights compressor;  ///< of the index's own rows
  template <typename F> void each(F&& f) { f(q_b_proj), f(weights_proj), compressor.each(f); }
};

/// V4's attention. N is the width of a head and of the row that is key and value of all heads.
struct CompressedAttentionWeights {
  Tensor q_a_proj, q_a_layernorm, q_b_proj;  ///< [Q, D], [Q], [H * N, Q]
  Tensor kv_proj, kv_layernorm;              ///< [N, D], [N]
  Tensor sinks;                              ///< [H]
  CompressorWeights compressor;              ///< of layers with compressed rows
  CompressedIndexerWeights indexer;          ///< of those that choose among them
  Tensor o_a_proj;                           ///< [G * o_lora_rank, H * N / G]: group g's heads meet its rows alone
  Tensor o_b_proj;                           ///< [D, G * o_lora_rank]
  template <typename F> void each(F&& f) {
    f(q_a_proj), f(q_a_layernorm), f(q_b_proj), f(kv_proj), f(kv_layernorm), f(sinks), compressor.each(f),
        indexer.each(f), f(o_a_proj), f(o_b_proj);
  }
};

struct MoeWeights {
  Tensor gate;                     ///< [E, D] router
  Tensor e_score_correction_bias;  ///< [E] or empty
  Tensor tid2eid;                  ///< [W, K] I32 or empty: the experts of a token by its id
  GatedFfnWeights experts;         ///< [E, F, D], [E, D, F]
  GatedFfnWeights shared_experts;  ///< or empty
  template <typename F> void each(F&& f) {
    f(gate), f(e_score_correction_bias), f(tid2eid), experts.each(f), shared_experts.each(f);
  }
};

struct BlockWeights {
  Tensor input_layernorm;  ///< [D]
  MlaWeights mla;          ///< one of the three
  MhaWeights mha;
  CompressedAttentionWeights csa;
  HyperConnectionWeights attn_hc, ffn_hc;  ///< V4
  Tensor post_attention_layernorm;         ///< [D]
  GatedFfnWeights mlp;                     ///< dense blocks
  MoeWeights moe;                          ///< the others
  bool is_moe() const { return static_cast<bool>(moe.gate); }
  template <typename F> void each(F&& f) {
    f(input_layernorm), mla.each(f), mha.each(f), csa.each(f), attn_hc.each(f), ffn_hc.each(f),
        f(post_attention_layernorm), mlp.each(f), moe.each(f);
  }
};

/// The block that predicts the token after next (MTP). Source: arXiv:2412.19437, section 2.2.
struct MtpWeights {
  Tensor enorm, hnorm;  ///< [D] norms of the next token's embedding and of the hidden state
  Tensor eh_proj;       ///< [D, 2 D]: embedding first
  BlockWeights block;
  Tensor norm;          ///< [D] before the head
  Tensor embed_tokens;  ///< [W, D], the model's own unless the file has another
  Tensor lm_head;       ///< [W, D], likewise
  template <typename F> void each(F&& f) {
    f(enorm), f(hnorm), f(eh_proj), block.each(f), f(norm), f(embed_tokens), f(lm_head);
  }
};

/// The tensors view the model file; norms that the file holds in a 16-bit type are owned here as f32.
struct Weights {
  Tensor embed_tokens;  ///< [W, D]
  std::vector<BlockWeights> layers;
  Tensor norm;                       ///< [D]
  Tensor lm_head;                    ///< [W, D]
  Tensor rope_frequencies;           ///< [R/2]
  Tensor compress_rope_frequencies;  ///< [R/2] of V4's layers with compressed rows
  HyperConnectionWeights head_hc;    ///< V4
  std::optional<MtpWeights> mtp;
  std::vector<std::shared_ptr<Buffer>> owned;

  int64_t vocab_size() const { return embed_tokens.dim(0); }
  /// Calls f for every tensor that is there.
  template <typename F> void each(F&& f) {
    auto present = [&](Tensor& t) {
      if (t) f(t);
    };
    present(embed_tokens);
    for (BlockWeights& layer : layers) layer.each(present);
    present(norm), present(lm_head), present(rope_frequencies), present(compress_rope_frequencies);
    head_hc.each(present);
    if (mtp) mtp->each(present);
  }
};

/// Finds and checks every tensor. Throws Error{kModel} naming the missing tensor with the dialect seen, or the tensor
/// with expected and found shape. `tensors` are GGUF's names and shapes (slowest first).
Weights bind_weights(const Config& config, const std::map<std::string, Tensor>& tensors);

/// Whether a file has an MTP block that forward_mtp computes.
bool has_mtp_block(const Config& config, const std::map<std::string, Tensor>& tensors);
/// Adds the first MTP block to `weights`, which were bound before. Throws as bind_weights does.
void bind_mtp(const Config& config, const std::map<std::string, Tensor>& tensors, Weights& weights);

}  // namespace fathom::deepseek
