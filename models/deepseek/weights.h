// The tensors of one DeepSeek model under the names its papers and checkpoints use, checked against its configuration.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/tensor.h"
#include "deepseek/config.h"
#include "ops/latent_attention.h"
#include "ops/moe.h"

namespace fathom::deepseek {

/// Latent attention: q either as q_proj or compressed, and everything from kv_a_proj on.
struct MlaWeights {
  Tensor q_proj;                            ///< [H * (N + R), D], if queries are not compressed
  Tensor q_a_proj, q_a_layernorm, q_b_proj; ///< [Q, D], [Q], [H * (N + R), Q]
  Tensor kv_a_proj;                         ///< [C + R, D]
  Tensor kv_a_layernorm;                    ///< [C]
  LatentProjections kv_b;
  Tensor o_proj;                            ///< [D, H * V]
};

/// V1's attention.
struct MhaWeights {
  Tensor q_proj, k_proj, v_proj;  ///< [H * N, D]; rows of q and k ordered for rotation of adjacent pairs
  Tensor o_proj;                  ///< [D, H * N]
};

struct MoeWeights {
  Tensor gate;                    ///< [E, D] router
  Tensor e_score_correction_bias; ///< [E] or empty
  GatedFfnWeights experts;        ///< [E, F, D], [E, D, F]
  GatedFfnWeights shared_experts; ///< or empty
};

struct BlockWeights {
  Tensor input_layernorm;  ///< [D]
  MlaWeights mla;          ///< one of the two
  MhaWeights mha;
  Tensor post_attention_layernorm;  ///< [D]
  GatedFfnWeights mlp;              ///< dense blocks
  MoeWeights moe;                   ///< the others
  bool is_moe() const { return static_cast<bool>(moe.gate); }
};

/// The tensors view the model file; norms that the file holds in a 16-bit type are owned here as f32.
struct Weights {
  Tensor embed_tokens;  ///< [W, D]
  std::vector<BlockWeights> layers;
  Tensor norm;              ///< [D]
  Tensor lm_head;           ///< [W, D]
  Tensor rope_frequencies;  ///< [R/2]
  std::vector<std::shared_ptr<Buffer>> owned;

  int64_t vocab_size() const { return embed_tokens.dim(0); }
};

/// Finds and checks every tensor. Throws Error{kModel} naming the missing tensor with the dialect seen, or the tensor with
/// expected and found shape. `tensors` are GGUF's names and shapes (slowest first).
Weights bind_weights(const Config& config, const std::map<std::string, Tensor>& tensors);

}  // namespace fathom::deepseek
