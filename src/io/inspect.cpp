#include "io/inspect.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <type_traits>
#include <variant>

#include "core/error.h"
#include "core/printable.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;
using Types = std::map<std::string, InspectReport::TypeTotal>;

constexpr const char* kTemplateKey = "tokenizer.chat_template";

void add_tensor(InspectReport& report, Types& types, InspectReport::TensorLine line, uint64_t n_elements) {
  InspectReport::TypeTotal& total = types[line.type];
  total.type = line.type;
  ++total.n_tensors;
  total.n_parameters += n_elements;
  total.size_bytes += line.size_bytes;
  report.n_parameters += n_elements;
  report.tensors.push_back(std::move(line));
}

void take_types(InspectReport& report, Types& types) {
  for (auto& [name, total] : types) report.types.push_back(std::move(total));
  std::stable_sort(report.types.begin(), report.types.end(),
                   [](const auto& a, const auto& b) { return a.size_bytes > b.size_bytes; });
}

// The shortest decimal that reads back as this float: 1e-06, not 9.999999974752427e-07.
double shortest_decimal(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value);
  double shortest = value;
  if (std::isfinite(value)) std::from_chars(text, end.ptr, shortest);
  return shortest;
}

Json configuration_value(const MetadataValue& value, const GgufStoredType& stored) {
  return std::visit(
      [&](const auto& v) -> Json {
        using V = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<V, std::vector<int64_t>> || std::is_same_v<V, std::vector<double>> ||
                      std::is_same_v<V, std::vector<std::string>>) {
          return {{"array", gguf_value_type_name(stored.element)}, {"count", v.size()}};
        } else if constexpr (std::is_same_v<V, double>) {
          return stored.type == GgufValueType::kF32 ? shortest_decimal(static_cast<float>(v)) : v;
        } else {
          return v;
        }
      },
      value);
}

// Texts are shown, not needed: another kind under the key counts as absent.
std::string text_or(const Metadata& metadata, const char* key, const char* otherwise) {
  const MetadataValue* value = metadata.find(key);
  const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
  return text == nullptr ? otherwise : *text;
}

void add_tokenizer(InspectReport& report, const Metadata& metadata) {
  constexpr std::string_view kPrefix = "tokenizer.ggml.";
  constexpr std::string_view kSuffix = "_token_id";
  report.tokenizer_model = text_or(metadata, "tokenizer.ggml.model", "");
  report.tokenizer_pre = text_or(metadata, "tokenizer.ggml.pre", "");
  const std::vector<std::string>* tokens = metadata.texts("tokenizer.ggml.tokens");
  const std::vector<std::string>* merges = metadata.texts("tokenizer.ggml.merges");
  report.n_tokens = tokens == nullptr ? 0 : tokens->size();
  report.n_merges = merges == nullptr ? 0 : merges->size();
  for (const auto& [key, value] : metadata.all()) {
    if (!key.starts_with(kPrefix) || !key.ends_with(kSuffix) || key.size() <= kPrefix.size() + kSuffix.size()) continue;
    if (!std::holds_alternative<int64_t>(value) && !std::holds_alternative<uint64_t>(value)) continue;
    const int64_t id = metadata.integer(key).value_or(0);
    const std::string role = key.substr(kPrefix.size(), key.size() - kPrefix.size() - kSuffix.size());
    const bool is_known = tokens != nullptr && static_cast<uint64_t>(id) < tokens->size();
    report.special_tokens.push_back({role, id, is_known ? (*tokens)[static_cast<size_t>(id)] : ""});
  }
  if (const std::string text = text_or(metadata, kTemplateKey, ""); !text.empty()) report.chat_template = text;
}

InspectReport inspect_gguf(const std::string& path) {
  const GgufModel model = GgufModel::open(path, {.header_only = true});
  InspectReport report;
  report.path = path;
  report.format = "GGUF " + std::to_string(model.files().front().version);
  report.architecture = text_or(model.metadata(), "general.architecture", "");
  report.name = text_or(model.metadata(), "general.name", "");
  report.type = model_type_name(model);
  report.size_bytes = model.size_bytes();
  Types types;
  for (size_t i = 0; i < model.files().size(); ++i) {
    const GgufFile& gguf = model.files()[i];
    report.files.push_back({gguf.file->path(), gguf.file->size_bytes(), gguf.tensors.size()});
    for (const GgufTensorInfo& t : gguf.tensors) {
      std::vector<int64_t> shape(t.shape.dims.begin(), t.shape.dims.begin() + t.shape.rank);
      add_tensor(report, types,
                 {t.name, std::string(dtype_name(t.dtype)), std::move(shape), t.size_bytes, t.offset_bytes, i},
                 static_cast<uint64_t>(t.shape.n_elements()));
    }
  }
  take_types(report, types);
  const GgufFile& first = model.files().front();
  for (const auto& [key, value] : model.metadata().all()) {
    if (key != kTemplateKey) report.configuration[key] = configuration_value(value, first.stored_types.at(key));
  }
  add_tokenizer(report, model.metadata());
  return report;
}

// A JSON object in a file of the folder; nothing if there is no such file.
std::optional<Json> read_json_object(const std::filesystem::path& path) {
  constexpr size_t kMaxBytes = size_t{4} << 20;  // tokenizer_config.json of V3 has 4 KiB
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, error))) return std::nullopt;
  const auto file = MappedFile::open(path.string());
  const auto refuse = [&](const std::string& what, const std::string& got) {
    throw Error(ErrorCode::kModel, printable(path.string(), 400) + ": " + what +
                                       "; expected a JSON object of at most 4 MiB, got " + got +
                                       "; try to download the file again");
  };
  if (file->size_bytes() > kMaxBytes) refuse("too long", std::to_string(file->size_bytes()) + " bytes");
  const std::string_view text(reinterpret_cast<const char*>(file->data()), file->size_bytes());
  Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) refuse("damaged JSON", "something else");
  if (!json.is_object()) refuse("not a JSON object", json.type_name());
  return json;
}

// Objects one level down as "outer.key"; lists as counts.
void flatten(Json& out, const std::string& prefix, const Json& object) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object() && prefix.empty()) {
      flatten(out, key + ".", value);
    } else if (value.is_structured()) {
      out[prefix + key] = {{"array", value.type_name()}, {"count", value.size()}};
    } else {
      out[prefix + key] = value;
    }
  }
}

std::string json_text_or(const Json& object, const char* key, const std::string& otherwise) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : otherwise;
}

void add_hugging_face_files(InspectReport& report, const std::filesystem::path& folder) {
  if (const std::optional<Json> config = read_json_object(folder / "config.json")) {
    flatten(report.configuration, "", *config);
    report.architecture = json_text_or(*config, "model_type", "");
  }
  std::error_code error;
  if (std::filesystem::exists(folder / "tokenizer.json", error)) report.tokenizer_model = "tokenizer.json";
  if (const std::optional<Json> tokenizer = read_json_object(folder / "tokenizer_config.json")) {
    const std::string text = json_text_or(*tokenizer, "chat_template", "");
    if (!text.empty()) report.chat_template = text;
  }
}

InspectReport inspect_safetensors(const std::string& path) {
  const SafetensorsModel model = SafetensorsModel::open(path);
  InspectReport report;
  report.path = path;
  report.format = "safetensors";
  report.size_bytes = model.size_bytes();
  for (const auto& file : model.files()) report.files.push_back({file->path(), file->size_bytes(), 0});
  Types types;
  for (const auto& [name, t] : model.tensors()) {
    const auto file =
        std::find_if(model.files().begin(), model.files().end(), [&](const auto& f) { return f.get() == t.file; });
    const auto file_idx = static_cast<size_t>(file - model.files().begin());
    std::string type(safetensors_type_name(t.type));
    for (char& c : type) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    ++report.files[file_idx].n_tensors;
    add_tensor(report, types, {name, std::move(type), t.shape, t.size_bytes, t.offset_bytes, file_idx},
               t.size_bytes / static_cast<uint64_t>(safetensors_type_bytes(t.type)));
  }
  take_types(report, types);
  report.type = report.types.empty() ? "none" : report.types.front().type;
  std::error_code error;
  const std::filesystem::path as_path(path);
  const std::filesystem::path folder = std::filesystem::is_directory(as_path, error) ? as_path : as_path.parent_path();
  report.name = std::filesystem::weakly_canonical(folder.empty() ? "." : folder, error).filename().string();
  add_hugging_face_files(report, folder.empty() ? "." : folder);
  return report;
}

}  // namespace

std::string model_type_name(const GgufModel& model) {
  const MetadataValue* value = model.metadata().find("general.file_type");
  if (const auto* number = value == nullptr ? nullptr : std::get_if<int64_t>(value)) {
    if (const auto name = gguf_file_type_name(*number)) return std::string(*name);
  }
  std::map<DType, uint64_t> bytes;
  for (const auto& [name, tensor] : model.tensors()) bytes[tensor.dtype] += tensor.size_bytes();
  const auto most =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? "none" : std::string(dtype_name(most->first));
}

InspectReport inspect_model(const std::string& path) {
  std::error_code error;
  const bool is_checkpoint =
      std::filesystem::is_directory(path, error) || path.ends_with(".safetensors") || path.ends_with(".json");
  return is_checkpoint ? inspect_safetensors(path) : inspect_gguf(path);
}

}  // namespace fathom
