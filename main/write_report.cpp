#include "main/write_report.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "convert/type_mix.h"
#include "core/error.h"
#include "core/printable.h"
#include "main/signals.h"

namespace fathom {
namespace {

/// "40G", "500M", "123456789": K, M, G and T are powers of 1000, as disks are sold and llama-gguf-split counts.
uint64_t parse_size(const std::string& text) {
  uint64_t value = 0, unit = 1;
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, value);
  bool good = error == std::errc{} && value > 0;
  if (good && after != end) {
    const size_t power =
        std::string_view("KMGT").find(static_cast<char>(std::toupper(static_cast<unsigned char>(*after))));
    good = after + 1 == end && power != std::string_view::npos;
    for (size_t i = 0; good && i <= power; ++i) unit *= 1000;
  }
  if (!good || value > std::numeric_limits<uint64_t>::max() / unit)
    throw Error(ErrorCode::kUsage, "--split-max-size: not a size; expected a number and K, M, G or T, got " +
                                       in_quotes(text) + "; try 40G");
  return value * unit;
}

struct Total {
  uint64_t n_tensors = 0, size_bytes = 0;
};

std::map<std::string, Total> totals_by_type(const WriteReport& report) {
  std::map<std::string, Total> totals;
  for (const WriteReport::Line& line : report.tensors) {
    Total& total = totals[std::string(dtype_name(line.to))];
    ++total.n_tensors;
    total.size_bytes += line.to_bytes;
  }
  return totals;
}

double bits_per_weight(const WriteReport& report) {
  double n_weights = 0;
  for (const WriteReport::Line& line : report.tensors) n_weights += static_cast<double>(line.shape.n_elements());
  return n_weights == 0 ? 0 : 8 * static_cast<double>(report.to_bytes) / n_weights;
}

std::string plan_text(const WriteReport& report) {
  size_t name_width = 0, shape_width = 0;
  for (const WriteReport::Line& line : report.tensors) {
    name_width = std::max(name_width, line.tensor.size());
    shape_width = std::max(shape_width, line.shape.to_string().size());
  }
  const auto padded = [](std::string text, size_t width) {
    return text + std::string(width > text.size() ? width - text.size() : 0, ' ');
  };
  std::string out;
  for (const WriteReport::Line& line : report.tensors) {
    out += padded(printable(line.tensor), name_width) + "  " + padded(line.shape.to_string(), shape_width) + "  " +
           padded(std::string(dtype_name(line.from)), 7) + " -> " + padded(std::string(dtype_name(line.to)), 7) + "  " +
           human_bytes(line.to_bytes) + (line.has_importance ? ", by importance" : "") + "\n";
  }
  for (const auto& [type, total] : totals_by_type(report))
    out += padded(type, 8) + std::to_string(total.n_tensors) + " tensors, " + human_bytes(total.size_bytes) + "\n";
  return out + std::to_string(report.tensors.size()) + " tensors, " + human_bytes(report.from_bytes) + " -> " +
         human_bytes(report.to_bytes) + ", " + fixed(bits_per_weight(report), 2) + " bits per weight\n";
}

std::string report_json(const WriteReport& report) {
  nlohmann::ordered_json json;
  json["paths"] = report.paths;
  json["from_bytes"] = report.from_bytes;
  json["to_bytes"] = report.to_bytes;
  json["resumed_bytes"] = report.resumed_bytes;
  json["bits_per_weight"] = bits_per_weight(report);
  json["notes"] = report.notes;
  json["types"] = nlohmann::ordered_json::object();
  for (const auto& [type, total] : totals_by_type(report))
    json["types"][type] = {{"tensors", total.n_tensors}, {"bytes", total.size_bytes}};
  json["tensors"] = nlohmann::ordered_json::array();
  for (const WriteReport::Line& line : report.tensors) {
    const std::vector<int64_t> shape(line.shape.dims.begin(), line.shape.dims.begin() + line.shape.rank);
    json["tensors"].push_back({{"name", line.tensor},
                               {"shape", shape},
                               {"from", dtype_name(line.from)},
                               {"to", dtype_name(line.to)},
                               {"bytes", line.to_bytes},
                               {"importance", line.has_importance}});
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

void declare_split(CLI::App& app, std::string& split_max_size) {
  app.add_option("--split-max-size", split_max_size, "Begin another file after so many bytes (default: one file)")
      ->type_name("N[K|M|G|T]");
}

void WriteFlags::declare(CLI::App& app, WriteOptions& options) {
  std::string types;
  for (const std::string& name : TypeMix::names()) types += (types.empty() ? "" : " ") + name;
  app.footer("Types and mixes: " + types +
             ". Below 4 bits give an importance matrix. A killed run keeps OUT.gguf.part and OUT.gguf.journal for the "
             "same command to go on with.");
  app.add_option("--type", options.type,
                 "Mix or type: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, iq4_xs, q2_k, mxfp4 ...")
      ->required()
      ->type_name("TYPE");
  app.add_option(
         "--tensor-type", options.tensor_types,
         "Another type for tensors whose name the expression is found in; repeatable, the first that matches counts")
      ->type_name("REGEX=TYPE")
      ->allow_extra_args(false);
  app.add_option("--imatrix", options.imatrix, "Importance matrix of fathom imatrix or llama-imatrix")
      ->type_name("FILE");
  declare_split(app, split_max_size);
  app.add_flag("--dry-run", options.is_dry_run, "Tell types and sizes, write nothing");
  app.add_flag("--json", json, "Report as one JSON object");
  common.declare(app);
}

void WriteFlags::apply(WriteOptions& options) const {
  options.n_threads = common.threads;
  if (!split_max_size.empty()) options.split_max_bytes = parse_size(split_max_size);
}

int write_and_report(const WriteFlags& flags, WriteOptions& options, const char* doing,
                     const std::function<WriteReport()>& write) {
  const Console console = flags.common.console();
  flags.apply(options);
  ProgressLine progress(console, doing, "bytes");
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  options.stop = [] { return interrupted(); };
  WriteReport report;
  try {
    report = write();
  } catch (const Error& error) {
    progress.clear();
    if (error.code() == ErrorCode::kInterrupted) console.note(error.what());
    throw;
  }
  progress.clear();
  for (const std::string& note : report.notes) console.note(note);
  if (report.resumed_bytes > 0)
    console.note("went on where an earlier run had stopped, at " + human_bytes(report.resumed_bytes));
  if (!options.is_dry_run) {
    console.note("wrote " + report.paths.front() +
                 (report.paths.size() > 1 ? " and " + std::to_string(report.paths.size() - 1) + " more" : "") + ", " +
                 human_bytes(report.to_bytes) + ", " + fixed(bits_per_weight(report), 2) + " bits per weight");
  }
  if (flags.json) {
    write_answer(report_json(report));
  } else if (options.is_dry_run) {
    write_answer(plan_text(report));
  }
  return 0;
}

}  // namespace fathom
