#include "convert/prune.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "convert/gguf_rows.h"
#include "convert/write_model.h"
#include "core/error.h"
#include "core/printable.h"
#include "core/quant/dequantize.h"
#include "io/gguf.h"

namespace fathom {
namespace {

/// Rows of the kept experts: `rows_of_each` of every one, in their new order.
class KeptRows final : public RowSource {
 public:
  KeptRows(std::shared_ptr<const RowSource> all, std::vector<int64_t> kept, int64_t rows_of_each, size_t floats_of_row)
      : all_(std::move(all)), kept_(std::move(kept)), rows_of_each_(rows_of_each), floats_of_row_(floats_of_row) {}

  void read(int64_t first, int64_t count, float* out) const override {
    each_run(first, count, [&](int64_t from, int64_t n, int64_t done) {
      all_->read(from, n, out + static_cast<size_t>(done) * floats_of_row_);
    });
  }
  bool store(DType dtype, int64_t first, int64_t count, std::byte* out) const override {
    const size_t width_bytes = row_bytes(dtype, static_cast<int64_t>(floats_of_row_));
    bool is_stored = true;
    each_run(first, count, [&](int64_t from, int64_t n, int64_t done) {
      is_stored = is_stored && all_->store(dtype, from, n, out + static_cast<size_t>(done) * width_bytes);
    });
    return is_stored;
  }
  void release() const override { all_->release(); }

 private:
  /// fn(first row in the source, rows, rows done before) for runs that stay within an expert.
  template <typename Fn> void each_run(int64_t first, int64_t count, Fn&& fn) const {
    for (int64_t done = 0; done < count;) {
      const int64_t row = first + done, within = row % rows_of_each_;
      const int64_t n = std::min(count - done, rows_of_each_ - within);
      fn(kept_[static_cast<size_t>(row / rows_of_each_)] * rows_of_each_ + within, n, done);
      done += n;
    }
  }

  std::shared_ptr<const RowSource> all_;
  std::vector<int64_t> kept_;
  int64_t rows_of_each_;
  size_t floats_of_row_;
};

/// The kept elements of a vector of one for each expert.
class KeptElements final : public RowSource {
 public:
  KeptElements(const Tensor& tensor, const std::vector<int64_t>& kept) {
    std::vector<float> all(static_cast<size_t>(tensor.shape.n_elements()));
    dequantize_row(tensor.dtype, tensor.data, all.data(), tensor.shape.n_elements());
    for (const int64_t e : kept) values_.push_back(all[static_cast<size_t>(e)]);
  }
  void read(int64_t, int64_t, float* out) const override { std::copy(values_.begin(), values_.end(), out); }

 private:
  std::vector<float> values_;
};

std::string list_of(const RouterShape& r) {
  std::string text;
  for (int64_t n = r.n_groups; n < r.n_experts; n += r.n_groups) {
    if (n / r.n_groups >= r.least_of_group && n / r.n_groups * r.n_groups_used >= r.n_used)
      text += (text.empty() ? "" : ", ") + std::to_string(n);
  }
  return text.empty() ? "no fewer than it has" : text;
}

/// What stays of a model.
struct Pruning {
  std::string prefix;    ///< of the architecture's keys: "deepseek2."
  int64_t n_blocks = 0;  ///< of the result
  int64_t n_mtp = 0;     ///< MTP layers left out, as their experts were not measured
  std::map<std::string, std::vector<int64_t>> kept_by_block;  ///< "blk.7."
  std::vector<int64_t> all_kept;                              ///< block after block
};

Pruning plan_pruning(const GgufModel& in, const PruneOptions& options) {
  const Metadata& m = in.metadata();
  const std::string* architecture = m.text("general.architecture");
  Pruning p;
  p.prefix = (architecture == nullptr ? std::string() : *architecture) + ".";
  const int64_t n_all_blocks = m.integer(p.prefix + "block_count").value_or(0);
  const std::string last = "blk." + std::to_string(n_all_blocks - 1);
  if (in.find(last + ".nextn.eh_proj.weight") != nullptr && !options.saliency.contains(last + ".ffn_down_exps.weight"))
    p.n_mtp = std::max<int64_t>(1, m.integer(p.prefix + "nextn_predict_layers").value_or(1));
  p.n_blocks = n_all_blocks - p.n_mtp;
  for (const auto& [tensor, saliency] : options.saliency)
    p.kept_by_block[tensor.substr(0, tensor.find('.', 4) + 1)] =
        choose_experts(saliency, options.router, options.n_keep);
  for (int64_t b = 0; b < p.n_blocks; ++b) {
    const auto it = p.kept_by_block.find("blk." + std::to_string(b) + ".");
    if (it != p.kept_by_block.end()) p.all_kept.insert(p.all_kept.end(), it->second.begin(), it->second.end());
  }
  return p;
}

/// A tensor as it is or with the kept experts' part of it; nothing for one of a layer that is left out.
std::optional<PlannedTensor> pruned_tensor(const GgufModel& in, const GgufTensorInfo& info, const PruneOptions& options,
                                           const Pruning& p) {
  const std::string block =
      info.name.starts_with("blk.") ? info.name.substr(0, info.name.find('.', 4) + 1) : std::string();
  if (!block.empty() && std::stoll(block.substr(4)) >= p.n_blocks) return std::nullopt;
  const Tensor& tensor = *in.find(info.name);
  auto rows = std::make_shared<GgufRows>(in, tensor);
  const std::string part = info.name.substr(block.size());
  if (part.starts_with("ffn_gate_tid2eid"))
    throw Error(ErrorCode::kModel, printable(options.in, 400) +
                                       ": experts chosen by a table; expected a router in every layer, got " +
                                       in_quotes(info.name));
  const bool is_stack = part.find("_exps.") != std::string::npos, is_router = part.starts_with("ffn_gate_inp."),
             is_bias = part.starts_with("exp_probs_b");
  if (!is_stack && !is_router && !is_bias) return PlannedTensor{info.name, info.shape, info.dtype, std::move(rows)};

  const auto kept = p.kept_by_block.find(block);
  const int64_t n_experts = options.router.n_experts;
  if (kept == p.kept_by_block.end() || info.shape[0] != n_experts)
    throw Error(ErrorCode::kModel, printable(options.in, 400) + ": tensor " + in_quotes(info.name) +
                                       " is not of a layer that was measured; expected " + std::to_string(n_experts) +
                                       " experts, got " + info.shape.to_string());
  Shape shape = info.shape;
  shape.dims[0] = options.n_keep;
  if (is_bias)
    return PlannedTensor{info.name, shape, DType::kF32, std::make_shared<KeptElements>(tensor, kept->second)};
  const int64_t rows_of_each = is_stack ? tensor.n_rows() / n_experts : 1;
  return PlannedTensor{
      info.name, shape, info.dtype,
      std::make_shared<KeptRows>(std::move(rows), kept->second, rows_of_each, static_cast<size_t>(info.shape.last()))};
}

/// What the result is, and what was done to it.
void set_prune_keys(GgufWriter& writer, const Metadata& before, const PruneOptions& options, const Pruning& p) {
  const int64_t n_experts = options.router.n_experts;
  const std::string* name = before.text("general.name");
  writer.set_text("general.name", (name == nullptr ? "" : *name + ", ") + std::to_string(options.n_keep) + " of " +
                                      std::to_string(n_experts) + " experts");
  writer.set_u32(p.prefix + "expert_count", static_cast<uint32_t>(options.n_keep));
  if (options.router.n_groups > 1) {
    writer.set_u32(p.prefix + "expert_group_count", static_cast<uint32_t>(options.router.n_groups));
    writer.set_u32(p.prefix + "expert_group_used_count", static_cast<uint32_t>(options.router.n_groups_used));
  }
  for (const auto& [key, value] : options.numbers) writer.set_f32(p.prefix + key, value);
  if (p.n_mtp > 0) {
    writer.set_u32(p.prefix + "block_count", static_cast<uint32_t>(p.n_blocks));
    writer.set_u32(p.prefix + "nextn_predict_layers", 0);
  }
  writer.set_bool("fathom.prune.is_lossy", true);
  writer.set_text("fathom.prune.method", "experts with the lowest mean of router weight times output norm dropped");
  writer.set_u32("fathom.prune.experts_before", static_cast<uint32_t>(n_experts));
  writer.set_i32s("fathom.prune.kept", p.all_kept);
  if (!options.dataset.empty()) writer.set_text("fathom.prune.dataset", options.dataset);
}

}  // namespace

std::vector<int64_t> choose_experts(const std::vector<double>& saliency, const RouterShape& r, int64_t n_keep) {
  const int64_t each = n_keep / std::max<int64_t>(1, r.n_groups);
  if (n_keep < 1 || n_keep >= r.n_experts || n_keep % r.n_groups != 0 || each < r.least_of_group ||
      each * r.n_groups_used < r.n_used) {
    throw Error(ErrorCode::kUsage, "--keep: the router cannot work with that; expected one of " + list_of(r) + " (" +
                                       std::to_string(r.n_experts) + " experts in " + std::to_string(r.n_groups) +
                                       (r.n_groups == 1 ? " group, " : " groups, ") + std::to_string(r.n_used) +
                                       " used), got " + std::to_string(n_keep));
  }
  FATHOM_CHECK(static_cast<int64_t>(saliency.size()) == r.n_experts, "a saliency for every expert");
  std::vector<int64_t> kept;
  const int64_t group_size = r.n_experts / r.n_groups;
  for (int64_t g = 0; g < r.n_groups; ++g) {
    std::vector<int64_t> order(static_cast<size_t>(group_size));
    std::iota(order.begin(), order.end(), g * group_size);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return saliency[static_cast<size_t>(a)] > saliency[static_cast<size_t>(b)];
    });
    std::sort(order.begin(), order.begin() + each);
    kept.insert(kept.end(), order.begin(), order.begin() + each);
  }
  return kept;
}

void check_prune_paths(const PruneOptions& options) {
  check_is_gguf_path(options.in);
  if (options.is_dry_run) return;
  check_output_path(options.out, "OUT.gguf");
  check_not_source(options.out, "OUT.gguf", GgufModel::open(options.in, {.header_only = true}));
}

WriteReport prune_file(const PruneOptions& options) {
  check_prune_paths(options);
  const GgufModel in = GgufModel::open(options.in);
  if (options.router.n_experts < 2 || options.saliency.empty())
    throw Error(ErrorCode::kModel,
                printable(options.in, 400) + ": no routed experts to drop; expected a mixture-of-experts model");
  const Pruning pruning = plan_pruning(in, options);
  ModelToWrite model;
  for (const GgufFile& file : in.files()) {
    model.source_key += file_identity(file.file->path());
    for (const GgufTensorInfo& info : file.tensors) {
      if (info.size_bytes == 0) continue;
      if (std::optional<PlannedTensor> tensor = pruned_tensor(in, info, options, pruning))
        model.tensors.push_back(*std::move(tensor));
    }
  }
  model.source_key += "keep " + std::to_string(options.n_keep);
  for (const int64_t e : pruning.all_kept) model.source_key += " " + std::to_string(e);
  model.context = {pruning.n_blocks, options.n_keep, 1, false};
  model.set_metadata = [&](GgufWriter& writer) {
    writer.copy_metadata(in.files().front());
    set_prune_keys(writer, in.metadata(), options, pruning);
  };
  model.check_intact = [&in] { in.check_intact(); };
  std::vector<std::string> notes;
  if (pruning.n_mtp > 0) notes.push_back("the MTP layer is left out: its experts were not measured");
  return write_model(model, options, std::move(notes));
}

}  // namespace fathom
