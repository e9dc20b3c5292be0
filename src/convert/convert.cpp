#include "convert/convert.h"

#include <algorithm>
#include <filesystem>

#include "convert/gguf_rows.h"
#include "convert/hf_config.h"
#include "convert/tensor_plan.h"
#include "convert/write_model.h"
#include "core/error.h"
#include "core/printable.h"
#include "io/gguf.h"
#include "io/output_file.h"
#include "io/safetensors.h"

namespace fathom {

WriteReport convert_checkpoint(const ConvertOptions& options) {
  if (!options.is_dry_run) check_output_path(options.out, "--out");
  std::error_code ignored;
  if (!std::filesystem::is_directory(options.folder, ignored)) {
    throw Error(ErrorCode::kModel, printable(options.folder, 400) +
                                       ": no such folder; expected a Hugging Face checkpoint with config.json, "
                                       "tokenizer.json and safetensors files, got " +
                                       (std::filesystem::exists(options.folder, ignored)
                                            ? "a file; try that file's folder, or fathom quantize for a GGUF file"
                                            : "nothing; try the folder the model was downloaded to"));
  }
  HfConfig config = read_hf_config(options.folder);
  if (!options.name.empty()) config.name = options.name;
  const SafetensorsModel checkpoint = SafetensorsModel::open(options.folder);
  TensorPlan plan = plan_tensors(config, checkpoint, {options.splits_kv_b, options.mtp});
  std::vector<GgufKey> keys = gguf_keys(config, options.splits_kv_b, plan.has_mtp);
  for (GgufKey& key : sampling_keys(options.folder)) keys.push_back(std::move(key));
  for (GgufKey& key : tokenizer_keys(options.folder, config)) keys.push_back(std::move(key));

  ModelToWrite model;
  model.tensors = std::move(plan.tensors);
  model.context = {config.n_layers + (plan.has_mtp ? config.n_mtp_layers : 0), config.n_experts,
                   config.generation == HfGeneration::kV1 ? config.n_heads / config.n_kv_heads : 1, false};
  model.source_key = file_identity(config.path);
  for (const auto& file : checkpoint.files()) model.source_key += file_identity(file->path());
  model.set_metadata = [&keys](GgufWriter& writer) {
    for (const GgufKey& key : keys) writer.set(key.name, key.value, {key.type, key.element});
  };
  model.check_intact = [&checkpoint] { checkpoint.check_intact(); };
  return write_model(model, options, std::move(plan.notes));
}

WriteReport quantize_file(const QuantizeOptions& options) {
  if (!options.is_dry_run) check_output_path(options.out, "OUT.gguf");
  check_is_gguf_path(options.in);
  const GgufModel in = GgufModel::open(options.in);
  if (!options.is_dry_run) check_not_source(options.out, "OUT.gguf", in);
  const Metadata& m = in.metadata();
  const std::string* architecture = m.text("general.architecture");
  const std::string prefix = (architecture == nullptr ? std::string() : *architecture) + ".";
  int64_t n_blocks = m.integer(prefix + "block_count").value_or(0);
  const int64_t n_left_out =
      options.with_mtp ? 0 : std::min(n_blocks, m.integer(prefix + "nextn_predict_layers").value_or(0));
  n_blocks -= n_left_out;
  const auto is_left_out = [&](const std::string& tensor) {
    for (int64_t k = 0; k < n_left_out; ++k) {
      if (tensor.starts_with("blk." + std::to_string(n_blocks + k) + ".")) return true;
    }
    return false;
  };

  ModelToWrite model;
  for (const GgufFile& file : in.files()) {
    model.source_key += file_identity(file.file->path());
    for (const GgufTensorInfo& info : file.tensors) {
      if (info.size_bytes == 0 || is_left_out(info.name)) continue;
      model.tensors.push_back({info.name, info.shape, info.dtype, std::make_shared<GgufRows>(in, *in.find(info.name))});
    }
  }
  const int64_t heads = m.integer(prefix + "attention.head_count").value_or(1),
                kv_heads = m.integer(prefix + "attention.head_count_kv").value_or(heads);
  const bool is_mla = m.has(prefix + "attention.kv_lora_rank");
  model.context = {n_blocks, m.integer(prefix + "expert_count").value_or(0),
                   is_mla || kv_heads < 1 ? 1 : heads / kv_heads, false};
  model.set_metadata = [&](GgufWriter& writer) {
    writer.copy_metadata(in.files().front());
    if (n_left_out == 0) return;
    writer.set_u32(prefix + "block_count", static_cast<uint32_t>(n_blocks));
    writer.set_u32(prefix + "nextn_predict_layers", 0);
  };
  model.check_intact = [&in] { in.check_intact(); };
  return write_model(model, options, {});
}

}  // namespace fathom
