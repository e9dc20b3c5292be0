#include "convert/write_model.h"

#include <sys/stat.h>

#include <filesystem>
#include <map>

#include "convert/imatrix.h"
#include "convert/tensor_encoder.h"
#include "core/error.h"
#include "core/printable.h"

namespace fathom {
namespace {

constexpr const char* kCopy = "copy";

double bits_per_weight(DType type) { return 8.0 * dtype_info(type).block_bytes / dtype_info(type).block_elements; }

bool is_integer(DType type) {
  return type == DType::kI8 || type == DType::kI16 || type == DType::kI32 || type == DType::kI64;
}

/// Counts by what happened, for a note each: "12 tensors ..., the first 'x'".
class Tally {
 public:
  void add(const std::string& what, const std::string& tensor) {
    auto& [n, first] = seen_[what];
    if (n++ == 0) first = tensor;
  }
  void append_to(std::vector<std::string>& notes) const {
    for (const auto& [what, seen] : seen_)
      notes.push_back(std::to_string(seen.first) + (seen.first == 1 ? " tensor " : " tensors ") + what +
                      ", the first " + seen.second);
  }

 private:
  std::map<std::string, std::pair<int64_t, std::string>> seen_;
};

class TypeChooser {
 public:
  TypeChooser(const WriteOptions& options, const MixContext& context)
      : rules_(options.tensor_types), context_(context) {
    if (options.type != kCopy) mix_ = TypeMix::named(options.type);
  }

  DType choose(const PlannedTensor& t) {
    if (is_integer(t.source_type)) return t.source_type;
    const bool is_kept = is_kept_f32(t.name, t.shape);
    const DType* rule = is_kept ? nullptr : rules_.find(t.name);
    if (rule != nullptr) return fitted(t, *rule);
    if (!mix_) return t.source_type;
    if (is_kept) return DType::kF32;
    const DType type = mix_->type_of(t.name, context_);
    if (t.source_type == DType::kMXFP4 && dtype_info(type).is_quantized &&
        bits_per_weight(type) >= bits_per_weight(DType::kMXFP4)) {
      if (type != DType::kMXFP4) tally_.add("stored as FP4 stay MXFP4, bit for bit", t.name);
      return DType::kMXFP4;
    }
    return fitted(t, type);
  }

  const std::optional<TypeMix>& mix() const { return mix_; }
  const TensorTypeRules& rules() const { return rules_; }
  Tally& tally() { return tally_; }

 private:
  DType fitted(const PlannedTensor& t, DType type) {
    const DType fitting = fitting_type(type, t.shape.last());
    if (fitting != type)
      tally_.add("with rows that " + std::string(dtype_name(type)) + " does not fit become " +
                     std::string(dtype_name(fitting)),
                 t.name);
    return fitting;
  }

  TensorTypeRules rules_;
  MixContext context_;
  std::optional<TypeMix> mix_;
  Tally tally_;
};

WriteReport plan(const ModelToWrite& model, const WriteOptions& options, const ImportanceMatrix* imatrix,
                 std::optional<TypeMix>& mix) {
  MixContext context = model.context;
  context.has_importance = imatrix != nullptr;
  TypeChooser chooser(options, context);
  WriteReport report;
  for (const PlannedTensor& t : model.tensors) {
    const DType to = chooser.choose(t);
    const auto n = static_cast<uint64_t>(t.n_rows());
    const uint64_t from_bytes = n * row_bytes(t.source_type, t.shape.last()),
                   to_bytes = n * row_bytes(to, t.shape.last());
    const bool has_importance =
        imatrix != nullptr && dtype_info(to).is_quantized && imatrix->find(t.name, t.shape, 0) != nullptr;
    const bool is_again =
        dtype_info(t.source_type).is_quantized && t.source_type != DType::kMXFP4 && to != t.source_type;
    if (is_again) chooser.tally().add("already quantized lose more by being quantized again", t.name);
    if (imatrix != nullptr && dtype_info(to).is_quantized && to != t.source_type && !has_importance)
      chooser.tally().add("not in the importance matrix", t.name);
    report.tensors.push_back({t.name, t.shape, t.source_type, to, from_bytes, to_bytes, has_importance});
    report.from_bytes += from_bytes;
    report.to_bytes += to_bytes;
  }
  chooser.rules().check_all_used();
  chooser.tally().append_to(report.notes);
  mix = chooser.mix();
  if (mix && mix->wants_importance() && imatrix == nullptr)
    report.notes.push_back(mix->name() + " without an importance matrix loses much; try --imatrix FILE");
  return report;
}

void check_room(const std::string& out, uint64_t needed_bytes) {
  const std::filesystem::path parent = std::filesystem::path(out).parent_path();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(parent.empty() ? "." : parent, error);
  if (error || space.available >= needed_bytes) return;  // an unknown folder is told when the file is opened
  throw Error(ErrorCode::kRuntime, printable(out, 400) + ": the disk has no room for it; expected " +
                                       std::to_string(needed_bytes) + " bytes free, got " +
                                       std::to_string(space.available) + "; try another disk or a smaller type");
}

void set_type_keys(GgufWriter& writer, const std::optional<TypeMix>& mix, const ImportanceMatrix* imatrix) {
  if (mix) writer.set_u32("general.file_type", static_cast<uint32_t>(mix->file_type()));
  writer.set_u32("general.quantization_version", 2);
  if (imatrix == nullptr) return;
  writer.set_text("quantize.imatrix.file", std::filesystem::path(imatrix->path()).filename().string());
  if (!imatrix->dataset().empty()) writer.set_text("quantize.imatrix.dataset", imatrix->dataset());
  writer.set("quantize.imatrix.entries_count", static_cast<int64_t>(imatrix->size()), {GgufValueType::kU32});
  writer.set("quantize.imatrix.chunks_count", imatrix->n_chunks(), {GgufValueType::kU32});
}

}  // namespace

void check_is_gguf_path(const std::string& in) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(in, ignored)) return;
  throw Error(ErrorCode::kModel, printable(in, 400) +
                                     ": a folder; expected a GGUF file or its first shard; try fathom convert to make "
                                     "one of a Hugging Face folder");
}

void check_not_source(const std::string& out, const std::string& option, const GgufModel& in) {
  std::error_code ignored;
  for (const GgufFile& file : in.files()) {
    if (std::filesystem::equivalent(file.file->path(), out, ignored)) {
      throw Error(ErrorCode::kUsage,
                  option + ": the result would replace its source; expected another path, got " + in_quotes(out));
    }
  }
}

std::string file_identity(const std::string& path) {
  struct stat about {};
  if (::stat(path.c_str(), &about) != 0) return path;
  return path + " " + std::to_string(about.st_size) + " " + std::to_string(about.st_mtim.tv_sec) + "." +
         std::to_string(about.st_mtim.tv_nsec) + "\n";
}

WriteReport write_model(const ModelToWrite& model, const WriteOptions& options, std::vector<std::string> notes) {
  std::optional<ImportanceMatrix> imatrix;
  if (!options.imatrix.empty()) imatrix = ImportanceMatrix::read(options.imatrix);
  const ImportanceMatrix* importance = imatrix ? &*imatrix : nullptr;
  std::optional<TypeMix> mix;
  WriteReport report = plan(model, options, importance, mix);
  report.notes.insert(report.notes.begin(), notes.begin(), notes.end());

  std::string resume_key = model.source_key;
  if (imatrix) resume_key += file_identity(options.imatrix);
  GgufWriter writer(options.out, {.split_max_bytes = options.split_max_bytes, .resume_key = resume_key});
  model.set_metadata(writer);
  set_type_keys(writer, mix, importance);
  for (const WriteReport::Line& line : report.tensors) writer.add_tensor(line.tensor, line.to, line.shape);
  if (options.is_dry_run) return report;

  const size_t n_there = writer.begin();
  report.paths = writer.paths();
  for (size_t i = 0; i < n_there; ++i) report.resumed_bytes += report.tensors[i].to_bytes;
  try {
    check_room(options.out, report.to_bytes - report.resumed_bytes);
  } catch (const Error&) {
    if (report.resumed_bytes == 0) writer.discard();
    throw;
  }
  uint64_t done_bytes = report.resumed_bytes;
  const auto check = [&] {
    if (options.stop && options.stop())
      throw Error(ErrorCode::kInterrupted, "interrupted; the same command goes on where this one stopped");
  };
  TensorEncoder encoder(options.n_threads > 0 ? options.n_threads : usable_physical_cores());
  for (size_t i = n_there; i < model.tensors.size(); ++i) {
    const PlannedTensor& t = model.tensors[i];
    const auto write = [&](const std::byte* data, size_t n_bytes) {
      writer.write(t.name, data, n_bytes);
      done_bytes += n_bytes;
      if (options.progress) options.progress(done_bytes, report.to_bytes);
    };
    encoder.encode(t, report.tensors[i].to, report.tensors[i].has_importance ? importance : nullptr, write, check);
    // A source cut while it was read gave zeros: they must not count as done.
    model.check_intact();
  }
  check();
  writer.finish();
  return report;
}

}  // namespace fathom
