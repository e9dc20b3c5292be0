// fathom doctor: what of this machine helps and what hinders.
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

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

struct Machine {
  std::string processor, huge_pages, governor, folder;
  std::vector<std::string> features, isas;
  int n_cores = 0;
  unsigned n_threads = 0;
  size_t n_nodes = 1;
  uint64_t memory_bytes = 0, available_bytes = 0, swap_bytes = 0, free_swap_bytes = 0, free_disk_bytes = 0;
  CudaDevices cuda;
};

/// Of the processor's flags those that kernels ask for, or may one day.
std::vector<std::string> known_features(const std::string& flags) {
  std::set<std::string> all;
  std::istringstream words(flags);
  for (std::string flag; words >> flag;) all.insert(flag);
  std::vector<std::string> known;
  for (const char* flag : {"avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512vbmi", "gfni", "avx512_bf16",
                           "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}) {
    if (all.contains(flag)) known.emplace_back(flag);
  }
  return known;
}

Machine look_at_machine() {
  std::map<std::string, std::string> processor = first_processor();
  Machine m;
  m.processor = processor["model name"];
  m.features = known_features(processor["flags"]);
  m.isas = cpu_isa_names();
  m.n_cores = usable_physical_cores();
  m.n_threads = std::thread::hardware_concurrency();
  m.n_nodes = count_nodes();
  m.governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  m.huge_pages = chosen(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  m.memory_bytes = memory_field("MemTotal");
  m.available_bytes = available_memory_bytes().value_or(0);
  m.swap_bytes = memory_field("SwapTotal");
  m.free_swap_bytes = memory_field("SwapFree");
  std::error_code ignored;
  m.folder = std::filesystem::current_path(ignored).string();
  struct statvfs disk {};
  if (::statvfs(".", &disk) == 0) m.free_disk_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  m.cuda = find_cuda_devices(true);
  return m;
}

struct Finding {
  bool is_good;
  std::string text;
};

std::vector<Finding> judge(const Machine& m) {
  std::vector<Finding> findings;
  const auto helps = [&](std::string text) { findings.push_back({true, std::move(text)}); };
  const auto hinders = [&](std::string text) { findings.push_back({false, std::move(text)}); };
  if (m.isas.front() == "reference")
    hinders("no vector kernels for this processor: everything runs on the plain ones, slowly");
  else
    helps("kernels: " + m.isas.front());
  if (m.huge_pages == "never")
    hinders(
        "transparent huge pages are off; echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes large "
        "buffers faster");
  else
    helps("transparent huge pages: " + m.huge_pages);
  if (m.available_bytes * 10 < m.memory_bytes) hinders("less than a tenth of the memory is free");
  const uint64_t free_in_machine = memory_field("MemAvailable");
  if (free_in_machine > m.available_bytes + m.available_bytes / 8)
    hinders("a control group (container) limits this process to " + human_bytes(m.available_bytes) + " of the " +
            human_bytes(free_in_machine) + " that the machine has free");
  if (m.swap_bytes > 0 && m.free_swap_bytes < m.swap_bytes / 2)
    hinders("more than half of the swap is in use: something else is short of memory");
  if (!m.governor.empty() && m.governor != "performance")
    hinders("frequency governor is " + m.governor + "; performance is steadier");
  if (m.n_nodes > 1)
    hinders(std::to_string(m.n_nodes) + " memory nodes: try numactl --interleave=all, weights are not placed by node");
  if (!m.cuda.devices.empty())
    helps("models that fit run on cuda 0 unless told otherwise (--backend cpu, --device N)");
  else if (has_nvidia_device())
    hinders("an NVIDIA device is there, but cannot be used: " + m.cuda.why_none);
  return findings;
}

nlohmann::ordered_json to_json(const Machine& m, const std::vector<Finding>& findings) {
  nlohmann::ordered_json devices = nlohmann::ordered_json::array(), list = nlohmann::ordered_json::array();
  for (const CudaDevice& d : m.cuda.devices) {
    devices.push_back({{"kind", "cuda"},
                       {"index", d.index},
                       {"name", d.name},
                       {"capability", d.capability},
                       {"multiprocessors", d.n_multiprocessors},
                       {"memory_bytes", d.memory_bytes},
                       {"free_bytes", d.free_bytes}});
  }
  for (const Finding& finding : findings) list.push_back({{"good", finding.is_good}, {"text", finding.text}});
  return {{"cpu",
           {{"name", m.processor},
            {"physical_cores", m.n_cores},
            {"threads", m.n_threads},
            {"features", m.features},
            {"isa", m.isas},
            {"governor", m.governor},
            {"nodes", m.n_nodes}}},
          {"memory",
           {{"total_bytes", m.memory_bytes},
            {"available_bytes", m.available_bytes},
            {"swap_total_bytes", m.swap_bytes},
            {"swap_free_bytes", m.free_swap_bytes},
            {"huge_pages", m.huge_pages}}},
          {"devices", devices},
          {"disk", {{"path", m.folder}, {"free_bytes", m.free_disk_bytes}}},
          {"findings", list}};
}

std::string to_text(const Machine& m, const std::vector<Finding>& findings) {
  std::string features, isas, devices;
  for (const std::string& name : m.features) features += " " + name;
  for (const std::string& name : m.isas) isas += " " + name;
  for (const CudaDevice& d : m.cuda.devices)
    devices += (devices.empty() ? "" : "\n             ") + std::string("cuda ") + std::to_string(d.index) + ": " +
               d.name + ", " + human_bytes(d.memory_bytes) + ", " + human_bytes(d.free_bytes) + " free";
  if (devices.empty()) devices = "none: " + m.cuda.why_none;
  std::string text = "processor    " + visible_text(m.processor) + ", " + std::to_string(m.n_cores) +
                     " physical cores usable, " + std::to_string(m.n_threads) + " threads\nfeatures    " + features +
                     "\nkernels     " + isas + "\nmemory       " + human_bytes(m.memory_bytes) + ", " +
                     human_bytes(m.available_bytes) + " available, swap " + human_bytes(m.swap_bytes) +
                     "\ndevices      " + visible_text(devices) + "\ndisk         " + human_bytes(m.free_disk_bytes) +
                     " free in " + visible_text(m.folder) + "\n\n";
  for (const Finding& finding : findings) text += (finding.is_good ? "helps    " : "hinders  ") + finding.text + "\n";
  return text;
}

int run(bool as_json) {
  const Machine machine = look_at_machine();
  const std::vector<Finding> findings = judge(machine);
  write_answer(
      as_json ? to_json(machine, findings).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
              : to_text(machine, findings));
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
