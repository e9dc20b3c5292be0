// Launchers of every operation but the matrix products (matmul.h): they start kernels on a stream and return. Arguments
// are nodes of core/node.h with device addresses; nothing of the host reads what they point to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/node.h"
#include "cuda/codebooks.h"
#include "cuda/matmul.h"
#include "cuda/stream.h"

namespace fathom::cuda {

struct OpContext {
  Stream stream;
  std::byte* workspace;  ///< at least the operation's *_workspace bytes, 256-byte aligned
  Codebooks books;
  int32_t* index_counts = nullptr;  ///< kIndexCountBytes of zeros on the device; every call leaves them zero
};

void take_rows(const TakeRowsArgs& a, const OpContext& c);
void concat_rows(const ConcatRowsArgs& a, const OpContext& c);
void add(const AddArgs& a, const OpContext& c);
void rms_norm(const RmsNormArgs& a, const OpContext& c);
/// The same, and its result in int8 for the products that follow, if that has memory; rows then of a multiple of 32.
void rms_norm_quantized(const RmsNormArgs& a, const QuantizedRows& quantized, const OpContext& c);
void rope_table(const RopeTableArgs& a, const OpContext& c);
void store_key_value(const StoreKeyValueArgs& a, const OpContext& c);
void layer_norm(const LayerNormArgs& a, const OpContext& c);
void store_rows(const StoreRowsArgs& a, const OpContext& c);

/// What stands before attention, in one launch; none of these reads what another writes:
///   at most one store_latent; two compress_rows; two of rotate_heads, or rms_norm without weights of heads and their
///   rotate_heads; one layer_norm with the rotate_heads of its result as one head and the store_rows of that.
/// Results between such neighbours are not written.
constexpr int kMostSideBySide = 2;  ///< of a kind that there may be two of
void side_by_side(std::span<const Node> nodes, const OpContext& c);
size_t compress_rows_shared_bytes(const CompressRowsArgs& a);

void route_experts(const RouteExpertsArgs& a, const OpContext& c);
/// The same for the last block of the router's product.
RouteByResult route_by_result(const RouteExpertsArgs& a);

// What the kernels can take; refused at load beyond.
constexpr int64_t kMostTokens = 65535;  ///< of a step: a grid's second and third dimension
constexpr int64_t kMostLatent = 512, kMostHead = 256, kMostExperts = 2048;
constexpr int kMostMixed = 4;              ///< residual streams; 1, 2 or 4
constexpr size_t kMostShared = 99 * 1024;  ///< bytes that a block can have on every supported device

/// norm.out may be null; else it gets the norm of the result, in int8 too if that has memory.
void collapse_streams(const CollapseStreamsArgs& a, const NormOfResult& norm, const OpContext& c);
void expand_streams(const ExpandStreamsArgs& a, const OpContext& c);
/// The same for kernels that make what is expanded, or the coefficients.
CollapseByResult collapse_by_result(const CollapseStreamsArgs& a);
ExpandResult expand_result(const ExpandStreamsArgs& a);

constexpr int64_t kIndexCountedTokens = 16;  ///< up to here a step's blocks choose together for each token
constexpr size_t kIndexCountBytes = kIndexCountedTokens * (2048 + 32) * sizeof(int32_t);
void index_rows(const IndexRowsArgs& a, const OpContext& c);
size_t index_rows_shared_bytes(const IndexRowsArgs& a);
size_t index_rows_workspace(const IndexRowsArgs& a);

size_t attention_shared_bytes(const LatentAttentionArgs& a);
/// `quantized` may have no memory; else it gets the result in int8 as well, if heads have values in multiples of 32.
void latent_attention(const LatentAttentionArgs& a, const QuantizedRows& quantized, const OpContext& c);
/// store_latent, rotate_heads and the attention that follows, one launch less: a.q is rotate.out, and the dimensions
/// that the rotation leaves alone are those before its first.
void store_rotate_and_attend(const StoreLatentArgs& store, const RotateHeadsArgs& rotate, const LatentAttentionArgs& a,
                             const QuantizedRows& quantized, const OpContext& c);
size_t latent_attention_workspace(const LatentAttentionArgs& a);
void compressed_attention(const CompressedAttentionArgs& a, const OpContext& c);
/// The same, its result rotated on the way: rotate.x is a.out. `quantized` as of latent_attention, heads of multiples
/// of 32.
void attend_and_rotate(const CompressedAttentionArgs& a, const RotateHeadsArgs& rotate, const QuantizedRows& quantized,
                       const OpContext& c);
size_t compressed_attention_shared_bytes(const CompressedAttentionArgs& a);
size_t compressed_attention_workspace(const CompressedAttentionArgs& a);
void multi_head_attention(const MultiHeadAttentionArgs& a, const OpContext& c);
size_t multi_head_attention_workspace(const MultiHeadAttentionArgs& a);

}  // namespace fathom::cuda
