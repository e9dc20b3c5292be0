// The same operations as reference/reference.h over the kernels of an instruction set. Each is called by all
// threads of a run together.
#pragma once

#include "cpu/op_context.h"

namespace fathom::cpu::fast {

void add(const AddArgs& a, OpContext& c);
void rms_norm(const RmsNormArgs& a, OpContext& c);

void collapse_streams(const CollapseStreamsArgs& a, OpContext& c);
Workspace collapse_streams_workspace(const CollapseStreamsArgs& a);
void expand_streams(const ExpandStreamsArgs& a, OpContext& c);
void compress_rows(const CompressRowsArgs& a, OpContext& c);
Workspace compress_rows_workspace(const CompressRowsArgs& a);

void linear(const LinearArgs& a, OpContext& c);
Workspace linear_workspace(const LinearArgs& a, const MatmulKernels& kernels);
void grouped_linear(const GroupedLinearArgs& a, OpContext& c);
Workspace grouped_linear_workspace(const GroupedLinearArgs& a, const MatmulKernels& kernels);
void gated_ffn(const GatedFfnArgs& a, OpContext& c);
Workspace gated_ffn_workspace(const GatedFfnArgs& a, const MatmulKernels& kernels);
void moe_ffn(const MoeFfnArgs& a, OpContext& c);
Workspace moe_ffn_workspace(const MoeFfnArgs& a, const MatmulKernels& kernels);
void index_rows(const IndexRowsArgs& a, OpContext& c);
Workspace index_rows_workspace(const IndexRowsArgs& a, const MatmulKernels& kernels);

}  // namespace fathom::cpu::fast
