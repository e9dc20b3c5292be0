// Which tensors a checkpoint becomes in GGUF, under which names, and from which rows.
#pragma once

#include <string>
#include <vector>

#include "convert/hf_config.h"
#include "convert/row_source.h"
#include "io/safetensors.h"

namespace fathom {

struct PlanOptions {
  bool splits_kv_b = true;  ///< attn_k_b (transposed) and attn_v_b instead of attn_kv_b
  MtpChoice mtp = MtpChoice::kAuto;
};

struct TensorPlan {
  std::vector<PlannedTensor> tensors;  ///< in file order
  bool has_mtp = false;
  std::vector<std::string> notes;  ///< what was left out, for people
};

/// Every tensor of the checkpoint finds its place or is known to have none (MTP layers that are not wanted, tables of
/// rotary frequencies). `model` must outlive the plan. Throws Error{kModel} naming the tensor that is missing, unknown
/// or of another shape than the configuration asks for.
TensorPlan plan_tensors(const HfConfig& config, const SafetensorsModel& model, const PlanOptions& options);

}  // namespace fathom
