#include "core/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

#include "core/file_io.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

/// A file with one number; nothing for "max" and where there is none.
std::optional<uint64_t> number_in(const fs::path& path) {
  const std::optional<std::string> text = read_whole(path);
  uint64_t value = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), value).ec != std::errc()) return std::nullopt;
  return value;
}

/// The names a version gives to its files.
struct GroupFiles {
  std::string_view limit, usage, inactive, active;
};
constexpr GroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                                  "total_active_file"};
constexpr GroupFiles kVersion2 = {"memory.max", "memory.current", "inactive_file", "active_file"};

/// Pages of files that the group can do without.
uint64_t file_pages(const fs::path& group, const GroupFiles& files) {
  std::ifstream stat(group / "memory.stat");
  std::string key;
  uint64_t value = 0, sum = 0;
  while (stat >> key >> value) sum += key == files.inactive || key == files.active ? value : 0;
  return sum;
}

std::optional<uint64_t> left_in(const fs::path& group, const GroupFiles& files) {
  const std::optional<uint64_t> limit = number_in(group / files.limit), usage = number_in(group / files.usage);
  if (!limit || !usage) return std::nullopt;
  const uint64_t held = *usage - std::min(*usage, file_pages(group, files));
  return *limit - std::min(*limit, held);
}

/// The whole pages that hold [begin, begin + n).
struct Pages {
  Pages(const std::byte* begin, size_t n_bytes) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t start = first & ~(page - 1);
    at = const_cast<std::byte*>(begin) - (first - start);
    size_bytes = n_bytes + (first - start);
  }
  void* at;
  size_t size_bytes;
};

}  // namespace

std::optional<uint64_t> group_memory_bytes(const fs::path& membership, const fs::path& root) {
  std::ifstream lines(membership);
  std::optional<uint64_t> least;
  // "4:memory:/docker/1234" (version 1), "0::/user.slice" (version 2). In a container the path may be that outside,
  // where the group is the root that is seen.
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_version_2 = controllers == ",,";
    if (!is_version_2 && controllers.find(",memory,") == std::string::npos) continue;
    const GroupFiles& files = is_version_2 ? kVersion2 : kVersion1;
    const fs::path mount = is_version_2 ? root : root / "memory";
    for (fs::path group = fs::path(line.substr(second + 1)).relative_path();; group = group.parent_path()) {
      if (const std::optional<uint64_t> left = left_in(mount / group, files))
        least = std::min(least.value_or(*left), *left);
      if (group.empty()) break;
    }
  }
  return least;
}

std::optional<uint64_t> available_memory_bytes() {
  const std::optional<uint64_t> system = meminfo_bytes("MemAvailable");
  const std::optional<uint64_t> group = group_memory_bytes("/proc/self/cgroup", "/sys/fs/cgroup");
  return system && group ? std::min(*system, *group) : system;
}

void read_soon(const std::byte* begin, size_t n_bytes) {
  if (n_bytes == 0) return;
  const Pages pages(begin, n_bytes);
  ::madvise(pages.at, pages.size_bytes, MADV_WILLNEED);
}

bool read_now(const std::byte* begin, size_t n_bytes) {
  if (n_bytes == 0) return true;
  const Pages pages(begin, n_bytes);
#ifdef MADV_POPULATE_READ
  return ::madvise(pages.at, pages.size_bytes, MADV_POPULATE_READ) == 0;
#else
  return ::madvise(pages.at, pages.size_bytes, MADV_WILLNEED) == 0;
#endif
}

}  // namespace fathom
