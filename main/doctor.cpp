// fathom doctor: what of this machine helps and what hinders.
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "core/file_io.h"
#include "core/host_memory.h"
#include "core/threads.h"
#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "engine/devices.h"
#include "main/options.h"

namespace fathom {
namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// "model name" and the like of the first processor.
std::map<std::string, std::string> first_processor() {
  std::map<std::string, std::string> fields;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    fields[key] = colon + 2 <= line.size() ? line.substr(colon + 2) : "";
  }
  return fields;
}

uint64_t memory_field(std::string_view name) { return meminfo_bytes(name).value_or(0); }

size_t count_nodes() {
  std::error_code error;
  size_t n = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("node") && name.size() > 4 && name[4] >= '0' && name[4] <= '9') ++n;
  }
  return n == 0 ? 1 : n;
}

/// "always [madvise] never": the one in brackets.
std::string chosen(const std::string& choices) {
  const size_t begin = choices.find('['), end = choices.find(']');
  return begin == std::string::npos || end == std::string::npos ? "unknown"
                                                                : choices.substr(begin + 1, end - begin - 1);
}

struct Finding {
  bool is_good;
  std::string text;
};

int run(bool as_json) {
  const std::map<std::string, std::string> processor = first_processor();
  const auto field = [&](const char* key) {
    const auto at = processor.find(key);
    return at == processor.end() ? std::string() : at->second;
  };
  std::set<std::string> flags;
  std::istringstream words(field("flags"));
  for (std::string flag; words >> flag;) flags.insert(flag);
  std::vector<std::string> found;
  for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512vbmi", "gfni", "avx512_bf16",
                           "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}) {
    if (flags.contains(flag)) found.emplace_back(flag);
  }
  const std::vector<std::string> isas = cpu_isa_names();
  const int cores = usable_physical_cores();
  const unsigned threads = std::thread::hardware_concurrency();
  const uint64_t total = memory_field("MemTotal"), available = available_memory_bytes().value_or(0),
                 swap_total = memory_field("SwapTotal"), swap_free = memory_field("SwapFree");
  const std::string huge = chosen(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  const std::string governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  const size_t nodes = count_nodes();
  std::error_code ignored;
  const std::string here = std::filesystem::current_path(ignored).string();
  struct statvfs disk {};
  const uint64_t free_disk = ::statvfs(".", &disk) == 0 ? static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize : 0;

  std::vector<Finding> findings;
  findings.push_back({isas.front() != "reference",
                      isas.front() == "reference"
                          ? "no vector kernels for this processor: everything runs on the plain ones, slowly"
                          : "kernels: " + isas.front()});
  if (huge == "never")
    findings.push_back({false,
                        "transparent huge pages are off; echo madvise > /sys/kernel/mm/transparent_hugepage/enabled "
                        "makes large buffers faster"});
  else
    findings.push_back({true, "transparent huge pages: " + huge});
  if (available * 10 < total) findings.push_back({false, "less than a tenth of the memory is free"});
  if (memory_field("MemAvailable") > available + available / 8)
    findings.push_back({false, "a control group (container) limits this process to " + human_bytes(available) +
                                   " of the " + human_bytes(memory_field("MemAvailable")) +
                                   " that the machine has free"});
  if (swap_total > 0 && swap_free < swap_total / 2)
    findings.push_back({false, "more than half of the swap is in use: something else is short of memory"});
  if (!governor.empty() && governor != "performance")
    findings.push_back({false, "frequency governor is " + governor + "; performance is steadier"});
  if (nodes > 1)
    findings.push_back(
        {false, std::to_string(nodes) + " memory nodes: try numactl --interleave=all, weights are not placed by node"});
  const CudaDevices cuda = find_cuda_devices(true);
  nlohmann::ordered_json devices = nlohmann::ordered_json::array();
  std::string device_text;
  for (const CudaDevice& d : cuda.devices) {
    devices.push_back({{"kind", "cuda"},
                       {"index", d.index},
                       {"name", d.name},
                       {"capability", d.capability},
                       {"multiprocessors", d.n_multiprocessors},
                       {"memory_bytes", d.memory_bytes},
                       {"free_bytes", d.free_bytes}});
    device_text += (device_text.empty() ? "" : "\n             ") + std::string("cuda ") + std::to_string(d.index) +
                   ": " + d.name + ", " + human_bytes(d.memory_bytes) + ", " + human_bytes(d.free_bytes) + " free";
  }
  if (cuda.devices.empty()) device_text = "none: " + cuda.why_none;
  if (!cuda.devices.empty())
    findings.push_back({true, "models that fit run on cuda 0 unless told otherwise (--backend cpu, --device N)"});
  if (has_nvidia_device() && cuda.devices.empty())
    findings.push_back({false, "an NVIDIA device is there, but cannot be used: " + cuda.why_none});

  if (as_json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Finding& finding : findings) list.push_back({{"good", finding.is_good}, {"text", finding.text}});
    const nlohmann::ordered_json json = {{"cpu",
                                          {{"name", field("model name")},
                                           {"physical_cores", cores},
                                           {"threads", threads},
                                           {"features", found},
                                           {"isa", isas},
                                           {"governor", governor},
                                           {"nodes", nodes}}},
                                         {"memory",
                                          {{"total_bytes", total},
                                           {"available_bytes", available},
                                           {"swap_total_bytes", swap_total},
                                           {"swap_free_bytes", swap_free},
                                           {"huge_pages", huge}}},
                                         {"devices", devices},
                                         {"disk", {{"path", here}, {"free_bytes", free_disk}}},
                                         {"findings", list}};
    write_answer(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return 0;
  }
  std::string features, names;
  for (const std::string& name : found) features += " " + name;
  for (const std::string& name : isas) names += " " + name;
  std::string text = "processor    " + visible_text(field("model name")) + ", " + std::to_string(cores) +
                     " physical cores usable, " + std::to_string(threads) + " threads\nfeatures    " + features +
                     "\nkernels     " + names + "\nmemory       " + human_bytes(total) + ", " + human_bytes(available) +
                     " available, swap " + human_bytes(swap_total) + "\ndevices      " + visible_text(device_text) +
                     "\ndisk         " + human_bytes(free_disk) + " free in " + visible_text(here) + "\n\n";
  for (const Finding& finding : findings) text += (finding.is_good ? "helps    " : "hinders  ") + finding.text + "\n";
  write_answer(text);
  return 0;
}

}  // namespace

Command add_doctor(CLI::App& root) {
  struct Options {
    CommonOptions common;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* app = root.add_subcommand("doctor", "What of this machine helps and what hinders");
  app->add_flag("--json", options->json, "As one JSON object");
  options->common.declare(*app);
  return {app, [options] { return run(options->json); }};
}

}  // namespace fathom
