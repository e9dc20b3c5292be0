// V4's tensors.
#pragma once

#include "deepseek/binder.h"

namespace fathom::deepseek {

CompressedAttentionWeights bind_compressed_attention(Binder& b, const std::string& prefix, int64_t layer_idx);
/// prefix: "blk.0.hc_attn_".
HyperConnectionWeights bind_hyper_connection(Binder& b, const std::string& prefix);
HyperConnectionWeights bind_head_connection(Binder& b);
/// Checks every id of the table against the number of experts.
Tensor bind_expert_table(const Binder& b, const std::string& prefix);

}  // namespace fathom::deepseek
