// Plain f32 implementations of every operation on dequantized weights: the specification the fast ones are held
// against. Each is called by all threads of a run together.
#pragma once

#include "cpu/op_context.h"

namespace fathom::cpu::reference {

void embed_rows(const EmbedRowsArgs& a, OpContext& c);
void take_rows(const TakeRowsArgs& a, OpContext& c);
void concat_rows(const ConcatRowsArgs& a, OpContext& c);
void add(const AddArgs& a, OpContext& c);
void rms_norm(const RmsNormArgs& a, OpContext& c);
void layer_norm(const LayerNormArgs& a, OpContext& c);
void rope_table(const RopeTableArgs& a, OpContext& c);
void rotate_heads(const RotateHeadsArgs& a, OpContext& c);
void store_latent(const StoreLatentArgs& a, OpContext& c);
Workspace store_latent_workspace(const StoreLatentArgs& a);
void store_key_value(const StoreKeyValueArgs& a, OpContext& c);
void store_rows(const StoreRowsArgs& a, OpContext& c);
void index_rows(const IndexRowsArgs& a, OpContext& c);
Workspace index_rows_workspace(const IndexRowsArgs& a);
void route_experts(const RouteExpertsArgs& a, OpContext& c);
Workspace route_experts_workspace(const RouteExpertsArgs& a);
void collapse_streams(const CollapseStreamsArgs& a, OpContext& c);
void expand_streams(const ExpandStreamsArgs& a, OpContext& c);
void compress_rows(const CompressRowsArgs& a, OpContext& c);
Workspace compress_rows_workspace(const CompressRowsArgs& a);

void linear(const LinearArgs& a, OpContext& c);
Workspace linear_workspace(const LinearArgs& a, int n_threads);
void grouped_linear(const GroupedLinearArgs& a, OpContext& c);
Workspace grouped_linear_workspace(const GroupedLinearArgs& a, int n_threads);
void gated_ffn(const GatedFfnArgs& a, OpContext& c);
Workspace gated_ffn_workspace(const GatedFfnArgs& a, int n_threads);
void moe_ffn(const MoeFfnArgs& a, OpContext& c);
Workspace moe_ffn_workspace(const MoeFfnArgs& a, int n_threads);

}  // namespace fathom::cpu::reference
