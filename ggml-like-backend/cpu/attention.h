// Attention over the paged cache, as the backend calls it: latent (MLA) and plain multi-head, by the reference and
// fast. Every function is called by all threads of a run together; the workspace functions read the step's positions.
#pragma once

#include "cpu/op_context.h"

namespace fathom::cpu {

namespace reference {
void latent_attention(const LatentAttentionArgs& a, OpContext& c);
Workspace latent_attention_workspace(const LatentAttentionArgs& a, int n_threads);
void multi_head_attention(const MultiHeadAttentionArgs& a, OpContext& c);
Workspace multi_head_attention_workspace(const MultiHeadAttentionArgs& a, int n_threads);
void compressed_attention(const CompressedAttentionArgs& a, OpContext& c);
Workspace compressed_attention_workspace(const CompressedAttentionArgs& a, int n_threads);
}  // namespace reference

/// Kernels of the instruction set that c.matmul names. Results depend neither on the number of threads nor on the other
/// sequences of the step, bit for bit.
namespace fast {
void latent_attention(const LatentAttentionArgs& a, OpContext& c);
Workspace latent_attention_workspace(const LatentAttentionArgs& a, const MatmulKernels& kernels, int n_threads);
void multi_head_attention(const MultiHeadAttentionArgs& a, OpContext& c);
Workspace multi_head_attention_workspace(const MultiHeadAttentionArgs& a, const MatmulKernels& kernels, int n_threads);
void compressed_attention(const CompressedAttentionArgs& a, OpContext& c);
Workspace compressed_attention_workspace(const CompressedAttentionArgs& a, const MatmulKernels& kernels, int n_threads);
}  // namespace fast

}  // namespace fathom::cpu
