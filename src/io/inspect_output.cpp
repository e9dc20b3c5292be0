#include <algorithm>
#include <cstdio>

#include "core/plain_text.h"
#include "core/printable.h"
#include "io/inspect.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

std::string padded(std::string text, size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

std::string right(const std::string& text, size_t width) {
  return text.size() < width ? std::string(width - text.size(), ' ') + text : text;
}

std::string count_text(uint64_t n) {
  char text[32];
  if (n >= 1000000000) {
    std::snprintf(text, sizeof text, "%.2f billion", static_cast<double>(n) / 1e9);
  } else if (n >= 1000000) {
    std::snprintf(text, sizeof text, "%.2f million", static_cast<double>(n) / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(n));
  }
  return text;
}

std::string plural(uint64_t n, const char* noun) { return std::to_string(n) + " " + noun + (n == 1 ? "" : "s"); }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string value_text(const Json& value) {
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_object())
    return plural(value["count"].get<uint64_t>(), "element") + " of " + value["array"].get<std::string>();
  return value.dump();
}

std::string tokenizer_text(const InspectReport& r) {
  if (r.tokenizer_model.empty()) return "none";
  std::string text = printable(r.tokenizer_model);
  if (!r.tokenizer_pre.empty()) text += ", pre-tokenizer " + printable(r.tokenizer_pre);
  if (r.n_tokens > 0) text += ", " + plural(r.n_tokens, "token") + ", " + plural(r.n_merges, "merge");
  return text;
}

std::string types_table(const InspectReport& r) {
  std::string out = padded("type", 10) + right("tensors", 9) + right("parameters", 18) + right("bytes", 18) + "\n";
  for (const InspectReport::TypeTotal& t : r.types) {
    out += padded(t.type, 10) + right(std::to_string(t.n_tensors), 9) + right(std::to_string(t.n_parameters), 18) +
           right(std::to_string(t.size_bytes), 18) + "\n";
  }
  return out;
}

std::string tensors_table(const InspectReport& r) {
  size_t name_width = 0;
  for (const InspectReport::TensorLine& t : r.tensors) name_width = std::max(name_width, printable(t.name).size());
  std::string out;
  for (const InspectReport::TensorLine& t : r.tensors) {
    out += "  " + padded(printable(t.name), name_width + 2) + padded(t.type, 9) + padded(shape_text(t.shape), 22) +
           plural(t.size_bytes, "byte");
    if (r.files.size() > 1) out += ", file " + std::to_string(t.file + 1);
    out += "\n";
  }
  return out;
}

}  // namespace

std::string inspect_text(const InspectReport& r, bool with_tensors) {
  std::string out;
  const auto line = [&](const char* label, const std::string& text) { out += padded(label, 15) + text + "\n"; };
  line("name", r.name.empty() ? "none" : printable(r.name));
  line("architecture", r.architecture.empty() ? "none" : printable(r.architecture));
  line("path", printable(r.path, 4096));
  line("format", r.format + ", " + plural(r.files.size(), "file") + ", " + human_bytes(r.size_bytes));
  line("type", r.type);
  line("parameters", count_text(r.n_parameters) + " in " + plural(r.tensors.size(), "tensor"));
  line("tokenizer", tokenizer_text(r));
  for (const InspectReport::SpecialToken& t : r.special_tokens)
    line("", padded(printable(t.role), 10) + std::to_string(t.token_id) + " " + in_quotes(t.text));
  line("chat template", r.chat_template ? plural(r.chat_template->size(), "byte") : "none");
  if (r.files.size() > 1) {
    out += "\nfiles\n";
    for (const InspectReport::File& file : r.files)
      out += "  " + printable(file.path, 4096) + ": " + human_bytes(file.size_bytes) + ", " +
             plural(file.n_tensors, "tensor") + "\n";
  }
  if (!r.types.empty()) out += "\n" + types_table(r);
  if (!r.configuration.empty()) out += "\nconfiguration\n";
  for (const auto& [key, value] : r.configuration.items())
    out += "  " + padded(printable(key), 44) + " " + value_text(value) + "\n";
  if (with_tensors && !r.tensors.empty()) out += "\ntensors (slowest dimension first)\n" + tensors_table(r);
  return out;
}

Json inspect_json(const InspectReport& r, bool with_tensors) {
  Json json = {{"path", r.path},
               {"format", r.format},
               {"architecture", r.architecture},
               {"name", r.name},
               {"type", r.type},
               {"size_bytes", r.size_bytes},
               {"parameters", r.n_parameters},
               {"tensor_count", r.tensors.size()}};
  json["files"] = Json::array();
  for (const auto& f : r.files)
    json["files"].push_back({{"path", f.path}, {"size_bytes", f.size_bytes}, {"tensors", f.n_tensors}});
  json["types"] = Json::array();
  for (const auto& t : r.types)
    json["types"].push_back(
        {{"type", t.type}, {"tensors", t.n_tensors}, {"parameters", t.n_parameters}, {"size_bytes", t.size_bytes}});
  json["configuration"] = r.configuration;
  json["tokenizer"] = {{"model", r.tokenizer_model},
                       {"pre", r.tokenizer_pre},
                       {"tokens", r.n_tokens},
                       {"merges", r.n_merges},
                       {"special", Json::object()}};
  for (const auto& t : r.special_tokens) json["tokenizer"]["special"][t.role] = {{"id", t.token_id}, {"text", t.text}};
  json["chat_template"] = r.chat_template ? Json(*r.chat_template) : Json(nullptr);
  if (!with_tensors) return json;
  json["tensors"] = Json::array();
  for (const auto& t : r.tensors) {
    json["tensors"].push_back({{"name", t.name},
                               {"type", t.type},
                               {"shape", t.shape},
                               {"size_bytes", t.size_bytes},
                               {"offset_bytes", t.offset_bytes},
                               {"file", t.file}});
  }
  return json;
}

std::string inspect_json_text(const InspectReport& report, bool with_tensors) {
  return inspect_json(report, with_tensors).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace fathom
